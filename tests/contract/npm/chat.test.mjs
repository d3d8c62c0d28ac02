import assert from "node:assert/strict";
import { test } from "node:test";
import { ANSWER, ask, client } from "./setup.mjs";

test("an answer", async () => {
  const answer = await client.chat.completions.create(ask("hello"));
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.match(answer._request_id, /^req_/);
});

test("a stream with usage", async () => {
  const stream = await client.chat.completions.create(
    ask("hello", { stream: true, stream_options: { include_usage: true } }),
  );
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), ANSWER);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
});

test("the stream helper", async () => {
  const stream = client.chat.completions.stream(ask("hello"));
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(text, ANSWER);
  assert.equal(final.choices[0].message.content, ANSWER);
});

test("leaving a stream early", async () => {
  const stream = await client.chat.completions.create(ask("[long] [slow]", { stream: true }));
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok(stream.controller.signal.aborted);
});

test("several answers with log-probabilities", async () => {
  const answer = await client.chat.completions.create(ask("hello", { n: 2, logprobs: true, top_logprobs: 2 }));
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(answer.choices[1].logprobs.content[0].top_logprobs.length, 2);
});

test("status and headers", async () => {
  const { data, response } = await client.chat.completions.create(ask("hello")).withResponse();
  assert.equal(data.choices[0].message.content, ANSWER);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("x-request-id"), data._request_id);
  assert.ok(Number(response.headers.get("openai-processing-ms")) >= 0);
});
