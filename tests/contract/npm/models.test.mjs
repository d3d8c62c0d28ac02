import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { client, model } from "./setup.mjs";

test("list and retrieve", async () => {
  const names = [];
  for await (const card of client.models.list()) names.push(card.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).object, "model");
  await assert.rejects(client.models.retrieve("gpt-9"), OpenAI.NotFoundError);
});
