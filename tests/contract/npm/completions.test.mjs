import assert from "node:assert/strict";
import { test } from "node:test";
import { ANSWER, client, model } from "./setup.mjs";

test("several prompts", async () => {
  const answer = await client.completions.create({ model, prompt: ["a", "b"], max_tokens: 100 });
  assert.deepEqual(answer.choices.map((choice) => choice.text), [ANSWER, ANSWER]);
});

test("a stream", async () => {
  const stream = await client.completions.create({ model, prompt: "a", max_tokens: 100, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
  assert.equal(text, ANSWER);
});

test("a hole", async () => {
  const answer = await client.completions.create({ model, prompt: "a", suffix: "c", max_tokens: 100 });
  assert.equal(answer.choices[0].text, ANSWER.split("Q")[0]);
  assert.equal(answer.choices[0].finish_reason, "stop");
});
