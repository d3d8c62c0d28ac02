import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { client, connect, limits } from "./setup.mjs";

const upload = async (content, purpose = "user_data", by = client) =>
  by.files.create({ file: await toFile(Buffer.from(content), "notes.txt"), purpose });

test("the life of a file", async () => {
  const made = await upload("one\ntwo\n");
  assert.deepEqual([made.object, made.filename, made.bytes, made.purpose], ["file", "notes.txt", 8, "user_data"]);
  assert.deepEqual(await client.files.retrieve(made.id), made);
  assert.equal(await (await client.files.content(made.id)).text(), "one\ntwo\n");
  const listed = [];
  for await (const file of client.files.list({ purpose: "user_data", limit: 1 })) listed.push(file.id);
  assert.ok(listed.includes(made.id));
  assert.equal((await client.files.delete(made.id)).deleted, true);
  await assert.rejects(client.files.retrieve(made.id), OpenAI.NotFoundError);
});

test("what is wrong with a file", async () => {
  await assert.rejects(upload("x", "poetry"), (error) => error instanceof OpenAI.BadRequestError && error.param === "purpose");
  await assert.rejects(upload("x".repeat(limits.FILE_BYTES + 1)), (error) => error.status === 413);
  const mine = await upload("x");
  await assert.rejects(connect({ apiKey: limits.OTHER_KEY }).files.content(mine.id), OpenAI.NotFoundError);
});
