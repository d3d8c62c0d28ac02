// What a conversation and its settings ask the server for: the parameters there are, the body, and the body as code.

import { address } from "./api.js";
import { path } from "./tree.js";

/**
 * The settings of a request. ``fallback`` is what the server does when a field is left out, which it is until somebody
 * sets it. A new parameter is one more line here.
 */
export const PARAMETERS = [
  {
    name: "temperature",
    label: "Temperature",
    kind: "number",
    min: 0,
    max: 2,
    step: 0.05,
    fallback: 1,
    help: "0 always takes the likeliest token; higher is more varied.",
  },
  {
    name: "top_p",
    label: "Top P",
    kind: "number",
    min: 0,
    max: 1,
    step: 0.01,
    fallback: 1,
    help: "Draws from the likeliest tokens that together have this probability.",
  },
  {
    name: "max_tokens",
    label: "Longest answer",
    kind: "integer",
    min: 1,
    unit: "tokens",
    help: "Empty: until the answer ends or the context is full.",
  },
  { name: "seed", label: "Seed", kind: "integer", help: "The same seed and request give the same answer." },
  { name: "stop", label: "Stop at", kind: "lines", help: "Texts that end the answer, one per line." },
  {
    name: "json",
    label: "Answer in JSON",
    kind: "switch",
    help: "Sets response_format to json_object. Say in the message what the JSON should hold.",
  },
  {
    name: "top_k",
    label: "Top K",
    kind: "integer",
    min: 0,
    more: true,
    fallback: 0,
    help: "Draws from this many tokens at most; 0: no limit.",
  },
  {
    name: "min_p",
    label: "Min P",
    kind: "number",
    min: 0,
    max: 1,
    step: 0.01,
    more: true,
    fallback: 0,
    help: "Drops tokens less likely than this share of the likeliest.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    kind: "number",
    min: 0.5,
    max: 2,
    step: 0.01,
    more: true,
    fallback: 1,
    help: "Above 1 avoids tokens that occurred.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    kind: "number",
    min: -2,
    max: 2,
    step: 0.1,
    more: true,
    fallback: 0,
    help: "Above 0 avoids tokens that occurred in the answer.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    kind: "number",
    min: -2,
    max: 2,
    step: 0.1,
    more: true,
    fallback: 0,
    help: "Above 0 avoids them the more, the more often they occurred.",
  },
];

/**
 * The body of a chat completion.
 *
 * @param chat the conversation
 * @param {object} [options]
 * @param {string | null} [options.head] the newest message that is sent
 * @param {string} [options.draft] a message not sent yet
 * @param {boolean} [options.prefix] the last message is the beginning of the answer, to be continued
 */
export function bodyOf(chat, { head = chat.head, draft = "", prefix = false } = {}) {
  const said = path(chat, head).filter(({ role, content }) => content || role === "user"); // no failed answers
  const messages = said.map(({ role, content }) => ({ role, content }));
  if (prefix) messages.at(-1).prefix = true;
  if (draft) messages.push({ role: "user", content: draft });
  if (chat.system.trim()) messages.unshift({ role: "system", content: chat.system });
  const body = { model: chat.model, messages, stream: true, stream_options: { include_usage: true } };
  for (const { name, kind } of PARAMETERS) {
    const value = chat.params[name];
    if (value === undefined || value === "" || value === false) continue;
    if (name === "json") body.response_format = { type: "json_object" };
    else body[name] = kind === "lines" ? value.split("\n").filter(Boolean) : value;
  }
  return body;
}

// -- as code ---------------------------------------------------------------------------------------------------------

export const SNIPPETS = [
  { id: "curl", label: "curl", language: "bash", make: curl },
  {
    id: "client",
    label: "Python, deepseek",
    language: "python",
    make: (body) => python(body, "deepseek", "Client", address("").replace(/\/$/, "")),
  },
  {
    id: "openai",
    label: "Python, openai",
    language: "python",
    make: (body) => python(body, "openai", "OpenAI", address("v1")),
  },
];

function curl(body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -N ${address("v1/chat/completions")} \\`,
    '  -H "Authorization: Bearer $DEEPSEEK_API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d '${quoted}'`,
  ].join("\n");
}

// Fields that the SDKs' methods do not have: they travel in `extra_body`.
const EXTENSIONS = new Set(["top_k", "min_p", "repetition_penalty"]);

function python(body, module, name, base) {
  const fields = Object.entries(body).filter(([field]) => !EXTENSIONS.has(field));
  const extra = Object.entries(body).filter(([field]) => EXTENSIONS.has(field));
  if (extra.length) fields.push(["extra_body", Object.fromEntries(extra)]);
  const args = fields.map(([field, value]) => `    ${field}=${literal(value, "    ")},`);
  return [
    "import os",
    "",
    `from ${module} import ${name}`,
    "",
    `client = ${name}(base_url=${literal(base)}, api_key=os.environ.get("DEEPSEEK_API_KEY", "none"))`,
    "stream = client.chat.completions.create(",
    ...args,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

/** A value as Python writes it. JSON's strings are Python's too, but for the three constants. */
function literal(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item !== "object")) return `[${value.map((item) => literal(item)).join(", ")}]`;
    return `[\n${value.map((item) => `${inner}${literal(item, inner)},\n`).join("")}${indent}]`;
  }
  return `{${Object.entries(value)
    .map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`)
    .join(", ")}}`;
}
