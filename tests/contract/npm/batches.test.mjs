import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { toFile } from "openai";
import { ANSWER, ask, client } from "./setup.mjs";

const endpoint = "/v1/chat/completions";

async function begin(...bodies) {
  const lines = bodies.map((body, i) => JSON.stringify({ custom_id: `${i}`, method: "POST", url: endpoint, body }));
  const file = await toFile(Buffer.from(lines.join("\n")), "in.jsonl");
  const source = await client.files.create({ file, purpose: "batch" });
  return client.batches.create({ input_file_id: source.id, endpoint, completion_window: "24h" });
}

async function ended(batch) {
  for (let look = 0; look < 600; look++) {
    if (["completed", "failed", "cancelled"].includes(batch.status)) return batch;
    await sleep(50);
    batch = await client.batches.retrieve(batch.id);
  }
  throw new Error(`the batch is still ${batch.status}`);
}

test("from questions to answers", async () => {
  const batch = await ended(await begin(ask("hello"), ask("[nan]")));
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const answer = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
  assert.equal(answer.response.body.choices[0].message.content, ANSWER);
  const error = JSON.parse(await (await client.files.content(batch.error_file_id)).text());
  assert.deepEqual([error.custom_id, error.response.status_code], ["1", 500]);
  const listed = [];
  for await (const found of client.batches.list({ limit: 1 })) listed.push(found.id);
  assert.ok(listed.includes(batch.id));
});

test("a bad line fails the batch", async () => {
  const batch = await ended(await begin(ask("hello"), ask("hello", { surprise: 1 })));
  assert.equal(batch.status, "failed");
  assert.deepEqual([batch.errors.data[0].line, batch.errors.data[0].code], [2, "unknown_parameter"]);
});

test("cancelling and conflicts", async () => {
  const batch = await begin(...Array(20).fill(ask("[long][slow]")));
  await assert.rejects(client.files.delete(batch.input_file_id), OpenAI.ConflictError);
  await client.batches.cancel(batch.id);
  assert.equal((await ended(batch)).status, "cancelled");
  const completed = await ended(await begin(ask("hello")));
  await assert.rejects(client.batches.cancel(completed.id), OpenAI.ConflictError);
});
