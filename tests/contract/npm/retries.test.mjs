import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, connect, limits, occupy } from "./setup.mjs";

// A client that notes what it sends, and calls `refused` with every 429 and 503.
function noting(options, refused = () => {}) {
  const sent = [];
  const noted = async (url, init) => {
    sent.push({ count: new Headers(init.headers).get("x-stainless-retry-count"), at: performance.now() });
    const response = await fetch(url, init);
    if ([429, 503].includes(response.status)) refused(Number(response.headers.get("retry-after-ms")));
    return response;
  };
  return [connect({ maxRetries: 3, fetch: noted, ...options }), sent];
}

for (const [name, key, answers, n] of [
  ["429", limits.ONE_AT_A_TIME, 1, 1],
  ["503", limits.KEY, limits.OF_ONE_KEY, 4],
]) {
  test(`Retry-After of ${name} is obeyed`, async () => {
    const stream = await occupy(key, answers);
    const waits = [];
    const [client, sent] = noting({ apiKey: key }, (wait) => {
      waits.push(wait);
      stream.controller.abort();
    });
    const answer = await client.chat.completions.create(ask("hello", { n }));
    assert.equal(answer.choices.length, n);
    assert.ok(waits.length >= 1);
    assert.deepEqual(sent.map((one) => one.count), sent.map((_, i) => `${i}`));
    waits.forEach((wait, i) => assert.ok(sent[i + 1].at - sent[i].at >= wait));
  });
}

for (const [status, key, fields] of [
  [400, limits.KEY, { temperature: 9 }],
  [401, "sk-wrong", {}],
  [429, limits.FEW_TOKENS, { max_tokens: 500 }],
]) {
  test(`${status}: what will not change is not asked again`, async () => {
    const [client, sent] = noting({ apiKey: key });
    await assert.rejects(client.chat.completions.create(ask("x", fields)), (error) => error.status === status);
    assert.equal(sent.length, 1);
  });
}

test("a stream that has begun is not asked again", async () => {
  const [client, sent] = noting({});
  const stream = await client.chat.completions.create(ask("[nan]", { stream: true }));
  await assert.rejects(async () => {
    for await (const chunk of stream) assert.ok(chunk);
  }, /not finite/);
  assert.equal(sent.length, 1);
});
