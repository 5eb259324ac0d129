// The official OpenAI SDK against the gateway.

import assert from "node:assert/strict";

import OpenAI from "openai";

import {
  ARGUMENTS,
  KEY,
  LIMITED_URL,
  QUESTION,
  SCHEMA,
  TIMEOUT,
  TIMES_TOO_LARGE,
  TOO_LARGE,
  URL,
  all,
  fails,
  isSentences,
  run,
  words,
} from "./scenes.mjs";

const connect = (options = {}) =>
  new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, timeout: TIMEOUT, maxRetries: 0, ...options });

const client = connect();
const model = "gpt-5-mini";
const messages = [{ role: "user", content: QUESTION }];
const tools = [
  { type: "function", function: { name: "level", parameters: SCHEMA } },
  { type: "function", function: { name: "flow", parameters: { type: "object", properties: {} } } },
];
const responseTools = [{ type: "function", name: "level", parameters: SCHEMA, strict: true }];

const ask = (options = {}, by = client) => by.chat.completions.create({ model, messages, ...options });

await run({
  async chat() {
    const answer = await ask();
    assert.deepEqual([answer.object, answer.model], ["chat.completion", model]);
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, "stop");
    isSentences(choice.message.content);
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.equal(completion_tokens, words(choice.message.content));
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
    assert.ok(answer._request_id, "x-request-id reaches the caller");
    const cut = await ask({ max_completion_tokens: 3 });
    assert.equal(cut.choices[0].finish_reason, "length");
    assert.equal(words(cut.choices[0].message.content), 3);
  },

  async streamWithUsage() {
    const chunks = await all(await ask({ stream: true, stream_options: { include_usage: true } }));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    isSentences(text);
    assert.equal(chunks.filter((chunk) => chunk.usage).length, 1);
    assert.equal(chunks.at(-1).usage.completion_tokens, words(text));
    assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");
  },

  async tools() {
    const [choice] = (await ask({ tools })).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["level", ARGUMENTS]);
    const result = { role: "tool", tool_call_id: call.id, content: "2.1" };
    const after = await ask({ tools, messages: [...messages, choice.message, result] });
    isSentences(after.choices[0].message.content);
  },

  async choiceOfTools() {
    const asked = async (tool_choice) => {
      const [choice] = (await ask({ tools, tool_choice })).choices;
      return (choice.message.tool_calls ?? []).map((call) => call.function.name);
    };
    assert.deepEqual(await asked("none"), []);
    assert.deepEqual(await asked("auto"), ["level"]);
    assert.deepEqual(await asked("required"), ["level"]);
    assert.deepEqual(await asked({ type: "function", function: { name: "flow" } }), ["flow"]);
  },

  async streamedTools() {
    const stream = client.chat.completions.stream({ model, messages, tools });
    const answer = await stream.finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["level", ARGUMENTS]);
  },

  async embeddings() {
    const embed = async (options = {}, isRepeated = false) => {
      const input = ["river", "mill"];
      const answer = await client.embeddings.create({ model: "text-embedding-3-small", input, ...options });
      // The gateway sends no input again, so it costs nothing again.
      assert.equal(answer.usage.total_tokens === 0, isRepeated);
      return answer.data.map((item) => item.embedding);
    };
    // The SDK asks for base64 by default and decodes it; what it makes of it must be what the numbers say.
    const [byDefault, numbers] = [await embed(), await embed({ encoding_format: "float" })];
    assert.deepEqual(byDefault.map((vector) => vector.length), [1536, 1536]);
    assert.deepEqual(byDefault, numbers.map((vector) => vector.map(Math.fround)));
    const length = byDefault[0].reduce((sum, n) => sum + n * n, 0);
    assert.ok(Math.abs(length - 1) < 1e-3, `${length}`);
    const short = await embed({ dimensions: 256 });
    assert.deepEqual(short.map((vector) => vector.length), [256, 256]);
    const encoded = await embed({ encoding_format: "base64" }, true);
    const bytes = Buffer.from(encoded[0], "base64");
    assert.equal(bytes.readFloatLE(4), byDefault[0][1]);
  },

  async responses() {
    const answer = await client.responses.create({ model, input: QUESTION });
    assert.equal(answer.status, "completed");
    isSentences(answer.output_text);
    assert.equal(answer.usage.output_tokens, words(answer.output_text));
    const streamed = client.responses.stream({ model, input: QUESTION });
    const events = await all(streamed);
    assert.equal(events.at(-1).type, "response.completed");
    isSentences((await streamed.finalResponse()).output_text);
  },

  async toolsOfResponses() {
    const input = [{ role: "user", content: QUESTION }];
    const [call] = (await client.responses.create({ model, input, tools: responseTools })).output;
    assert.deepEqual([call.type, call.name, JSON.parse(call.arguments)], ["function_call", "level", ARGUMENTS]);
    const result = { type: "function_call_output", call_id: call.call_id, output: "2.1" };
    const after = await client.responses.create({ model, input: [...input, call, result], tools: responseTools });
    isSentences(after.output_text);
    const stream = client.responses.stream({ model, input, tools: responseTools });
    const [streamed] = (await stream.finalResponse()).output;
    assert.deepEqual([streamed.name, JSON.parse(streamed.arguments)], ["level", ARGUMENTS]);
  },

  async models() {
    const listed = await all(await client.models.list());
    assert.ok(listed.some((one) => one.id === "sim-1"));
    assert.equal((await client.models.retrieve("sim-1")).object, "model");
    const error = await fails(OpenAI.NotFoundError, () => client.models.retrieve("none"));
    assert.equal(error.code, "model_not_found");
  },

  async badRequest() {
    const error = await fails(OpenAI.BadRequestError, () => ask({ messages: [] }));
    assert.deepEqual([error.code, error.param], ["empty_array", "messages"]);
    await fails(OpenAI.BadRequestError, () => ask({ model: "" }));
    await fails(OpenAI.BadRequestError, () => client.embeddings.create({ model, input: "" }));
  },

  async wrongKey() {
    const error = await fails(OpenAI.AuthenticationError, () => ask({}, connect({ apiKey: "sk-wrong" })));
    assert.equal(error.status, 401);
    assert.ok(!String(error).includes("sk-wrong"));
  },

  async tooLarge() {
    const large = [{ role: "user", content: TOO_LARGE }];
    for (let i = 0; i < TIMES_TOO_LARGE; i += 1) {
      const error = await fails(OpenAI.APIError, () => ask({ messages: large }));
      assert.equal(error.status, 413);
    }
  },

  async overTheLimit() {
    const limited = connect({ baseURL: `${LIMITED_URL}/v1` });
    await ask({}, limited);
    const error = await fails(OpenAI.RateLimitError, () => ask({}, limited));
    const seconds = Number(error.headers.get("retry-after"));
    // The longest that the SDKs wait for.
    assert.ok(seconds > 0 && seconds <= 120, `${seconds}`);
  },

  async errorsOfTheProvider() {
    // A model for each fault: the gateway closes what fails.
    const faulty = (fault) => ask({ model: `sim-${fault}` }, connect({ defaultHeaders: { "x-sim-fault": fault } }));
    assert.equal((await fails(OpenAI.RateLimitError, () => faulty("429"))).code, "rate_limit_exceeded");
    await fails(OpenAI.InternalServerError, () => faulty("500"));
  },
});
