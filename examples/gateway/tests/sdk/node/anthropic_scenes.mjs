// The official Anthropic SDK against the gateway.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

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
  new Anthropic({ baseURL: URL, apiKey: KEY, timeout: TIMEOUT, maxRetries: 0, ...options });

const client = connect();
const model = "claude-sonnet-4-5";
const messages = [{ role: "user", content: QUESTION }];
const tools = [
  { name: "level", input_schema: SCHEMA },
  { name: "flow", input_schema: { type: "object" } },
];
const body = { model, max_tokens: 99, messages };

const ask = (options = {}, by = client) => by.messages.create({ ...body, ...options });

await run({
  async message() {
    const answer = await ask();
    assert.deepEqual([answer.type, answer.model, answer.stop_reason], ["message", model, "end_turn"]);
    isSentences(answer.content[0].text);
    assert.equal(answer.usage.output_tokens, words(answer.content[0].text));
    assert.equal((await ask({ max_tokens: 3 })).stop_reason, "max_tokens");
  },

  async countOfTokens() {
    const counted = await client.messages.countTokens({ model, messages });
    assert.ok(counted.input_tokens > 0);
    assert.equal(counted.input_tokens, (await ask()).usage.input_tokens);
  },

  async stream() {
    const stream = client.messages.stream(body);
    const events = await all(stream);
    const answer = await stream.finalMessage();
    isSentences(answer.content[0].text);
    assert.equal(answer.usage.output_tokens, words(answer.content[0].text));
    assert.equal(events.at(-1).type, "message_stop");
  },

  async tools() {
    const answer = await ask({ tools });
    const [call] = answer.content;
    assert.deepEqual([answer.stop_reason, call.name, call.input], ["tool_use", "level", ARGUMENTS]);
    const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "2.1" }] };
    const turns = [...messages, { role: "assistant", content: answer.content }, result];
    isSentences((await ask({ tools, messages: turns })).content[0].text);
  },

  async choiceOfTools() {
    const asked = async (tool_choice) => {
      const { content } = await ask({ tools, tool_choice });
      return content.filter((block) => block.type === "tool_use").map((block) => block.name);
    };
    assert.deepEqual(await asked({ type: "none" }), []);
    assert.deepEqual(await asked({ type: "auto" }), ["level"]);
    assert.deepEqual(await asked({ type: "any" }), ["level"]);
    assert.deepEqual(await asked({ type: "tool", name: "flow" }), ["flow"]);
  },

  async streamedTools() {
    const answer = await client.messages.stream({ ...body, tools }).finalMessage();
    const [call] = answer.content;
    assert.deepEqual([call.name, call.input, answer.stop_reason], ["level", ARGUMENTS, "tool_use"]);
  },

  async models() {
    const listed = await all(await client.models.list());
    assert.ok(listed.length > 0 && listed.every((one) => one.type === "model"));
    const one = await client.models.retrieve(listed[0].id);
    assert.equal(one.display_name, listed[0].display_name);
    const error = await fails(Anthropic.NotFoundError, () => client.models.retrieve("none"));
    assert.equal(error.error.error.type, "not_found_error");
  },

  async badRequest() {
    const error = await fails(Anthropic.BadRequestError, () => ask({ messages: [] }));
    assert.equal(error.error.error.type, "invalid_request_error");
    await fails(Anthropic.BadRequestError, () => ask({ model: "" }));
  },

  async wrongKey() {
    const error = await fails(Anthropic.AuthenticationError, () => ask({}, connect({ apiKey: "sk-wrong" })));
    assert.equal(error.error.error.type, "authentication_error");
    assert.ok(!String(error).includes("sk-wrong"));
  },

  async tooLarge() {
    const large = [{ role: "user", content: TOO_LARGE }];
    for (let i = 0; i < TIMES_TOO_LARGE; i += 1) {
      const error = await fails(Anthropic.ContentTooLargeError, () => ask({ messages: large }));
      assert.deepEqual([error.status, error.error.error.type], [413, "request_too_large"]);
    }
  },

  async overTheLimit() {
    const limited = connect({ baseURL: LIMITED_URL });
    await ask({}, limited);
    const error = await fails(Anthropic.RateLimitError, () => ask({}, limited));
    assert.equal(error.error.error.type, "rate_limit_error");
    const seconds = Number(error.headers.get("retry-after"));
    // The longest that the SDKs wait for.
    assert.ok(seconds > 0 && seconds <= 120, `${seconds}`);
  },

  async errorsOfTheProvider() {
    const faulty = (fault) => ask({ model: `sim-${fault}` }, connect({ defaultHeaders: { "x-sim-fault": fault } }));
    await fails(Anthropic.RateLimitError, () => faulty("429"));
    assert.equal((await fails(Anthropic.OverloadedError, () => faulty("overloaded"))).status, 529);
  },
});
