// The official Google Gen AI SDK against the gateway.

import assert from "node:assert/strict";

import { ApiError, GoogleGenAI } from "@google/genai";

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

const connect = ({ baseUrl = URL, apiKey = KEY, headers } = {}) =>
  new GoogleGenAI({ apiKey, vertexai: false, httpOptions: { baseUrl, timeout: TIMEOUT, headers } });

const client = connect();
const model = "gemini-2.5-flash";
const tools = [{ functionDeclarations: [{ name: "level", parametersJsonSchema: SCHEMA }, { name: "flow" }] }];

const ask = (options = {}, by = client) => by.models.generateContent({ model, contents: QUESTION, ...options });

async function failsWith(status, call) {
  const error = await fails(ApiError, call);
  assert.equal(error.status, status, error.message);
  return error;
}

await run({
  async generate() {
    const answer = await ask();
    isSentences(answer.text);
    assert.equal(answer.candidates[0].finishReason, "STOP");
    assert.equal(answer.usageMetadata.candidatesTokenCount, words(answer.text));
    const cut = await ask({ config: { maxOutputTokens: 3 } });
    assert.equal(cut.candidates[0].finishReason, "MAX_TOKENS");
  },

  async countOfTokens() {
    const counted = await client.models.countTokens({ model, contents: QUESTION });
    assert.ok(counted.totalTokens > 0);
    assert.equal(counted.totalTokens, (await ask()).usageMetadata.promptTokenCount);
  },

  async stream() {
    const chunks = await all(await client.models.generateContentStream({ model, contents: QUESTION }));
    const text = chunks.map((chunk) => chunk.text ?? "").join("");
    isSentences(text);
    assert.equal(chunks.at(-1).candidates[0].finishReason, "STOP");
    assert.equal(chunks.at(-1).usageMetadata.candidatesTokenCount, words(text));
  },

  async tools() {
    const answer = await ask({ config: { tools } });
    const [call] = answer.functionCalls;
    assert.deepEqual([call.name, call.args], ["level", ARGUMENTS]);
    const result = { functionResponse: { name: "level", response: { metres: 2.1 } } };
    const contents = [
      { role: "user", parts: [{ text: QUESTION }] },
      answer.candidates[0].content,
      { role: "user", parts: [result] },
    ];
    isSentences((await ask({ contents, config: { tools } })).text);
  },

  async choiceOfTools() {
    const asked = async (functionCallingConfig) => {
      const answer = await ask({ config: { tools, toolConfig: { functionCallingConfig } } });
      return (answer.functionCalls ?? []).map((call) => call.name);
    };
    assert.deepEqual(await asked({ mode: "NONE" }), []);
    assert.deepEqual(await asked({ mode: "AUTO" }), ["level"]);
    assert.deepEqual(await asked({ mode: "ANY" }), ["level"]);
    assert.deepEqual(await asked({ mode: "ANY", allowedFunctionNames: ["flow"] }), ["flow"]);
  },

  async streamedTools() {
    const stream = await client.models.generateContentStream({ model, contents: QUESTION, config: { tools } });
    const calls = (await all(stream)).flatMap((chunk) => chunk.functionCalls ?? []);
    assert.deepEqual(calls.map((call) => [call.name, call.args]), [["level", ARGUMENTS]]);
  },

  async embeddings() {
    const embed = async (config = {}) => {
      const contents = ["river", "mill"];
      const answer = await client.models.embedContent({ model: "gemini-embedding-001", contents, config });
      return answer.embeddings.map((embedding) => embedding.values.length);
    };
    assert.deepEqual(await embed(), [3072, 3072]);
    assert.deepEqual(await embed({ outputDimensionality: 256 }), [256, 256]);
  },

  async models() {
    const listed = await all(await client.models.list());
    assert.ok(listed.some((one) => one.name === `models/${model}`));
    assert.equal((await client.models.get({ model })).name, `models/${model}`);
    await failsWith(404, () => client.models.get({ model: "none" }));
  },

  async badRequest() {
    const error = await failsWith(400, () => client.models.embedContent({ model, contents: [""] }));
    assert.match(error.message, /INVALID_ARGUMENT/);
  },

  async wrongKey() {
    const error = await failsWith(401, () => ask({}, connect({ apiKey: "sk-wrong" })));
    assert.match(error.message, /UNAUTHENTICATED/);
    assert.ok(!String(error).includes("sk-wrong"));
  },

  async tooLarge() {
    for (let i = 0; i < TIMES_TOO_LARGE; i += 1) {
      await failsWith(413, () => ask({ contents: TOO_LARGE }));
    }
  },

  async overTheLimit() {
    const limited = connect({ baseUrl: LIMITED_URL });
    await ask({}, limited);
    const error = await failsWith(429, () => ask({}, limited));
    assert.match(error.message, /RESOURCE_EXHAUSTED/);
  },

  async errorsOfTheProvider() {
    const faulty = (fault) => ask({ model: `sim-${fault}` }, connect({ headers: { "x-sim-fault": fault } }));
    await failsWith(429, () => faulty("429"));
    await failsWith(503, () => faulty("overloaded"));
  },
});
