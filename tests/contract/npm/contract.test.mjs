// The npm package `openai` against a running server with the scripted engine: DEEPSEEK_URL, DEEPSEEK_KEY, ANSWER.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { DEEPSEEK_URL, DEEPSEEK_KEY, ANSWER } = process.env;
const model = "deepseek-v2.1";
const client = new OpenAI({ baseURL: `${DEEPSEEK_URL}/v1`, apiKey: DEEPSEEK_KEY, maxRetries: 0 });
const ask = (content) => ({ model, messages: [{ role: "user", content }] });

test("chat", async () => {
  const answer = await client.chat.completions.create(ask("hello"));
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.match(answer._request_id, /^req_/);
});

test("streamed chat with usage", async () => {
  const stream = await client.chat.completions.create({
    ...ask("hello"),
    stream: true,
    stream_options: { include_usage: true },
  });
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
  const stream = await client.chat.completions.create({ ...ask("[long] [slow]"), stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok(stream.controller.signal.aborted);
});

test("several answers with log-probabilities", async () => {
  const answer = await client.chat.completions.create({ ...ask("hello"), n: 2, logprobs: true, top_logprobs: 2 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(answer.choices[1].logprobs.content[0].top_logprobs.length, 2);
});

test("completions", async () => {
  const answer = await client.completions.create({ model, prompt: ["a", "b"], max_tokens: 100 });
  assert.deepEqual(answer.choices.map((choice) => choice.text), [ANSWER, ANSWER]);
  const stream = await client.completions.create({ model, prompt: "a", max_tokens: 100, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
  assert.equal(text, ANSWER);
});

test("models", async () => {
  const names = [];
  for await (const card of client.models.list()) names.push(card.id);
  assert.ok(names.includes(model));
  assert.equal((await client.models.retrieve(model)).object, "model");
});

test("errors have their classes", async () => {
  const stranger = client.withOptions({ apiKey: "sk-wrong" });
  await assert.rejects(stranger.models.list(), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.code, "invalid_api_key");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...ask("x"), model: "gpt-9" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...ask("x"), temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...ask("[nan]") }), OpenAI.InternalServerError);
});

test("an error inside a stream raises", async () => {
  const stream = await client.chat.completions.create({ ...ask("[nan]"), stream: true });
  await assert.rejects(async () => {
    for await (const chunk of stream) assert.ok(chunk);
  }, /not finite/);
});
