"""The numbers are right: held against other software's, and against published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from encoding.passages import TEXTS
from server_process import ServerProcess

# What other libraries warn of is not ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PAIRS = [
    ("how many people live in berlin", "Berlin has about 3.7 million registered inhabitants."),
    ("how many people live in berlin", "New York City is famous for its museums."),
    ("what do cats eat", "Cats are obligate carnivores; " * 12),
]


def _distances(ours: Any, theirs: Any) -> Any:  # Any: arrays of `(texts, dimensions)`
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    cosines = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return 1 - cosines


def test_embeddings_are_those_of_sentence_transformers(client: openai.OpenAI, minilm: Path) -> None:
    """
    Fifty texts, the longest of them cut at the model's 256 tokens, are within a cosine distance of 0.001, in order.
    """
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu").encode(list(TEXTS))

    answer = client.embeddings.create(model="minilm", input=list(TEXTS), extra_body={"truncate_prompt_tokens": -1})

    assert len(TEXTS) == len(set(TEXTS)) == 50
    assert _distances([each.embedding for each in answer.data], theirs).max() < 1e-3


def test_the_published_similarities_come_out(client: openai.OpenAI) -> None:
    """The three sentences in the model's own documentation have the similarities that are printed there.

    Source: https://sbert.net/docs/quickstart.html
    """
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]

    vectors = np.array([each.embedding for each in client.embeddings.create(model="minilm", input=sentences).data])

    assert vectors @ vectors.T == pytest.approx(np.array(published), abs=2e-3)


def test_a_cross_encoder_scores_as_transformers_does(heads_server: ServerProcess, heads: dict[str, Path]) -> None:
    """The score of a pair is the sigmoid of the one label's logit."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    queries, documents = zip(*PAIRS, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(heads["cross"])
    made = tokenizer(list(queries), list(documents), padding=True, return_tensors="pt", truncation=False)
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(heads["cross"])(**made).logits

    body = {"model": "cross", "text_1": queries, "text_2": documents}
    status, answer = heads_server.post("/score", body)

    assert status == 200, answer
    assert [each["score"] for each in answer["data"]] == pytest.approx(torch.sigmoid(logits[:, 0]).tolist(), abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == int(made["attention_mask"].sum())


def test_a_classifier_gives_the_probabilities_of_transformers(
    heads_server: ServerProcess, heads: dict[str, Path]
) -> None:
    """Each label's name comes with its probability, and the likeliest label is the label."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["I am so happy for you!", "Leave me alone.", "?"]
    made = AutoTokenizer.from_pretrained(heads["mood"])(texts, padding=True, return_tensors="pt", truncation=False)
    model = AutoModelForSequenceClassification.from_pretrained(heads["mood"])
    with torch.inference_mode():
        theirs = torch.softmax(model(**made).logits, dim=-1)

    status, answer = heads_server.post("/classify", {"model": "mood", "input": texts})

    assert status == 200, answer
    for each, expected in zip(answer["data"], theirs, strict=True):
        named = dict(zip(model.config.id2label.values(), expected.tolist(), strict=True))
        assert each["probabilities"] == pytest.approx(named, abs=1e-4)
        assert each["label"] == max(named, key=named.__getitem__)
        assert each["probs"] == list(each["probabilities"].values())


def test_a_classifier_of_tokens_names_each_piece_of_text(heads_server: ServerProcess, heads: dict[str, Path]) -> None:
    """Every token that stands for text has transformers' label and probability, and says where in the text it is."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    text = "Ada Lovelace lived in London."
    made = AutoTokenizer.from_pretrained(heads["tags"])(text, return_tensors="pt", return_offsets_mapping=True)
    spans = made.pop("offset_mapping")[0].tolist()
    model = AutoModelForTokenClassification.from_pretrained(heads["tags"])
    with torch.inference_mode():
        theirs = torch.softmax(model(**made).logits[0], dim=-1)

    status, answer = heads_server.post("/classify", {"model": "tags", "input": text})

    assert status == 200, answer
    tokens = answer["data"][0]["tokens"]
    # The first and the last token are special.
    assert [[each["start"], each["end"]] for each in tokens] == spans[1:-1]
    labels = [model.config.id2label[best] for best in theirs.argmax(dim=-1).tolist()]
    assert [each["label"] for each in tokens] == labels[1:-1]
    assert [each["probability"] for each in tokens] == pytest.approx(theirs.max(dim=-1).values.tolist()[1:-1], abs=1e-4)
