// What the scenes of all SDKs share: where the gateway is, and a runner.

export const URL = process.env.GATEWAY_URL;
export const KEY = process.env.GATEWAY_KEY;
// Another gateway, which lets one call a minute through to each provider.
export const LIMITED_URL = process.env.LIMITED_URL;

// Milliseconds for one call; it takes half a second on an idle machine.
export const TIMEOUT = 60_000;

// 12 MB, more than the gateway's limit for a body.
export const TOO_LARGE = "river ".repeat(2_000_000);
export const TIMES_TOO_LARGE = 20;

// Scenes that are not run, by name.
const SKIPPED = (process.env.SCENES_SKIPPED ?? "").split(" ");

export const SCHEMA = {
  type: "object",
  properties: {
    place: { type: "string" },
    unit: { type: "string", enum: ["metres", "feet"] },
  },
  required: ["place", "unit"],
  additionalProperties: false,
};
export const ARGUMENTS = { place: "river", unit: "metres" };
export const QUESTION = "How high is the river?";

/** The error of `call`, which must be of this class itself. */
export async function fails(kind, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    if (error.constructor !== kind) throw error;
    return error;
  }
  throw new Error(`no error, but ${JSON.stringify(answer)}`);
}

export function isSentences(text) {
  if (!/^[A-Z].*\.$/s.test(text)) throw new Error(`no whole sentences: ${text}`);
}

export const words = (text) => text.split(" ").length;

export async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

/** Runs the scenes one after the other; a failed one does not keep the rest from running. */
export async function run(scenes) {
  const chosen = Object.entries(scenes).filter(([name]) => !SKIPPED.includes(name));
  let failed = 0;
  for (const [name, scene] of chosen) {
    try {
      await scene();
      console.log(`ok ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${name}`);
      console.log(error);
    }
  }
  console.log(`${chosen.length - failed} passed, ${failed} failed`);
  process.exitCode = failed || !chosen.length ? 1 : 0;
}
