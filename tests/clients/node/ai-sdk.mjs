// Vercel's AI SDK: node ai-sdk.mjs BASE_URL MODEL prints what it got, as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "appliance", baseURL, apiKey: "sk-client", includeUsage: true });
const chat = provider(model);
const prompt = "grüß dich 🌍";
const tools = { get_weather: tool({ inputSchema: z.object({ city: z.string() }) }) };
const options = { maxRetries: 0 };

const whole = await generateText({ model: chat, prompt, ...options });

let streamed = "";
const stream = streamText({ model: chat, prompt, ...options });
for await (const piece of stream.textStream) streamed += piece;

const asked = await generateText({ model: chat, prompt, tools, ...options });
const streamedAsk = streamText({ model: chat, prompt, tools, ...options });
await streamedAsk.consumeStream();
const call = asked.toolCalls[0];
const streamedCall = (await streamedAsk.toolCalls)[0];

const embedded = await embedMany({ model: provider.embeddingModel(model), values: ["one", "three"], ...options });

let error = null;
try {
  await generateText({ model: provider("nobody"), prompt, ...options });
} catch (caught) {
  error = [caught.statusCode, JSON.parse(caught.responseBody).error.code];
}

console.log(JSON.stringify({
  whole: whole.text,
  streamed,
  usage: (await stream.usage).totalTokens,
  tool: [call.toolName, call.input],
  streamed_tool: [streamedCall.toolName, streamedCall.input],
  embeddings: embedded.embeddings,
  error,
  models: [whole.response.modelId, (await stream.response).modelId].filter((one, at, all) => all.indexOf(one) === at),
}));
