// OpenAI's client for Node: node openai.mjs BASE_URL MODEL prints what it got, as JSON.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-client", maxRetries: 0 });
const messages = [{ role: "user", content: "grüß dich 🌍" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];

const whole = await client.chat.completions.create({ model, messages });

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  model, messages, stream: true, stream_options: { include_usage: true },
});
const models = new Set([whole.model]);
for await (const chunk of stream) {
  models.add(chunk.model);
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage?.total_tokens ?? usage;
}

const asked = await client.chat.completions.create({ model, messages, tools });
const call = asked.choices[0].message.tool_calls[0].function;
const runner = client.chat.completions.stream({ model, messages, tools });
const final = await runner.finalChatCompletion();
const streamedCall = final.choices[0].message.tool_calls[0].function;

const embedded = await client.embeddings.create({ model, input: ["one", "three"] });

let error = null;
try {
  await client.chat.completions.create({ model: "nobody", messages });
} catch (caught) {
  error = [caught.status, caught.code];
}

console.log(JSON.stringify({
  whole: whole.choices[0].message.content,
  streamed,
  usage,
  tool: [call.name, JSON.parse(call.arguments)],
  streamed_tool: [streamedCall.name, JSON.parse(streamedCall.arguments)],
  embeddings: embedded.data.map((each) => each.embedding),
  error,
  models: [...models],
}));
