import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { ask, client, connect, limits, occupy } from "./setup.mjs";

const INVALID = "invalid_request_error";
// key, fields of a chat, class, status, type, param, code
const cases = [
  [limits.KEY, { temperature: 9 }, OpenAI.BadRequestError, 400, INVALID, "temperature", null],
  [limits.KEY, { x: 1 }, OpenAI.BadRequestError, 400, INVALID, "x", "unknown_parameter"],
  [limits.KEY, { max_tokens: 9999 }, OpenAI.BadRequestError, 400, INVALID, "messages", "context_length_exceeded"],
  ["sk-wrong", {}, OpenAI.AuthenticationError, 401, INVALID, null, "invalid_api_key"],
  [limits.KEY, { model: "gpt-9" }, OpenAI.NotFoundError, 404, INVALID, "model", "model_not_found"],
  [limits.KEY, { user: "x".repeat(limits.BODY_BYTES) }, OpenAI.APIError, 413, INVALID, null, "request_too_large"],
  [limits.FEW_TOKENS, { max_tokens: 500 }, OpenAI.RateLimitError, 429, "tokens", null, "rate_limit_exceeded"],
  [limits.KEY, { messages: ask("[nan]").messages }, OpenAI.InternalServerError, 500, "server_error", null, "engine_error"],
];

for (const [key, fields, kind, ...expected] of cases) {
  test(`${expected[0]} ${expected[3]}`, async () => {
    await assert.rejects(connect({ apiKey: key }).chat.completions.create({ ...ask("x"), ...fields }), (error) => {
      assert.equal(error.constructor, kind);
      assert.deepEqual([error.status, error.type, error.param, error.code], expected);
      assert.match(error.requestID, /^req_/);
      return true;
    });
  });
}

async function lastOf(calls) {
  for (const call of calls) {
    try {
      await call();
    } catch (error) {
      return error;
    }
  }
  assert.fail("nothing was refused");
}

test("429 requests per minute", async () => {
  const one = () => connect({ apiKey: limits.ONE_A_MINUTE }).chat.completions.create(ask("x"));
  const error = await lastOf([one, one]);
  assert.ok(error instanceof OpenAI.RateLimitError);
  const wait = Number(error.headers.get("retry-after"));
  assert.ok(wait > 0 && wait <= 60);
});

test("402 quota", async () => {
  const one = () => connect({ apiKey: limits.POOR }).chat.completions.create(ask("x"));
  const error = await lastOf([one, one]);
  assert.deepEqual([error.status, error.code], [402, "insufficient_quota"]);
});

test("503 overload", async () => {
  const stream = await occupy(limits.KEY, limits.OF_ONE_KEY);
  try {
    await assert.rejects(client.chat.completions.create(ask("x", { n: 4 })), (error) => {
      assert.equal(error.constructor, OpenAI.InternalServerError);
      assert.deepEqual([error.status, error.code], [503, "server_is_overloaded"]);
      assert.ok(Number(error.headers.get("retry-after")) >= 1);
      return true;
    });
  } finally {
    stream.controller.abort();
  }
});

test("an unknown address", async () => {
  await assert.rejects(client.images.generate({ prompt: "a river" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    return error.code === "unknown_url";
  });
});

test("an error inside a stream raises", async () => {
  const stream = await client.chat.completions.create(ask("[nan]", { stream: true }));
  await assert.rejects(async () => {
    for await (const chunk of stream) assert.ok(chunk);
  }, /not finite/);
});

test("timeouts and no server", async () => {
  await assert.rejects(
    client.chat.completions.create(ask("[long][slow]"), { timeout: 300 }),
    OpenAI.APIConnectionTimeoutError,
  );
  await assert.rejects(connect({ baseURL: "http://127.0.0.1:9/v1" }).models.list(), OpenAI.APIConnectionError);
});
