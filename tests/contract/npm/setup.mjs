// What all files share. tests/contract/test_npm.py starts the server and says where it is, and with which keys.

import OpenAI from "openai";

export const { ANSWER } = process.env;
export const limits = JSON.parse(process.env.LIMITS);
export const model = "deepseek-v2.1";

export const connect = (options = {}) =>
  new OpenAI({ baseURL: `${process.env.DEEPSEEK_URL}/v1`, apiKey: limits.KEY, maxRetries: 0, ...options });
export const client = connect();
export const ask = (content, fields = {}) => ({ model, messages: [{ role: "user", content }], ...fields });

// An endless stream of several answers, when it has begun; `controller.abort()` ends it.
export async function occupy(key, answers) {
  const stream = await connect({ apiKey: key }).chat.completions.create(ask("[long][slow]", { n: answers, stream: true }));
  await stream[Symbol.asyncIterator]().next();
  return stream;
}
