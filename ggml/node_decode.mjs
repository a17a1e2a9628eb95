// SPDX-License-Identifier: Apache-2.0
//
// A program of somebody who uses node-llama-cpp: it prompts a model with fixed tokens and prints the
// most likely ones that follow. It knows nothing of AMLA; GGML_BACKEND_PATH does. If that is set, the
// tokens are computed again in a program without it, and compared.
//
//     node node_decode.mjs MODEL PROMPT_TOKENS STEPS         exit code 3: not equal
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/"); // the package is where the program runs, not where this file lies
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const [model_path, n_prompt, n_steps] = process.argv.slice(2);

async function decode() {
  const llama = await getLlama({ gpu: false, build: "never", progressLogs: false });
  const model = await llama.loadModel({ modelPath: model_path });
  const context = await model.createContext({ contextSize: 1024, flashAttention: true, threads: 2 });
  const sequence = context.getSequence();
  const prompt = Array.from({ length: Number(n_prompt) }, (_, i) => 259 + ((i * i * 31 + 7 * i) % 250));

  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
    tokens.push(token);
    if (tokens.length == Number(n_steps)) break;
  }
  await context.dispose();
  await llama.dispose();
  return tokens;
}

function decodeWithout() {
  const { GGML_BACKEND_PATH: _, ...env } = process.env; // a plug-in stays loaded: hence another program
  const options = { env, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8" };
  const done = spawnSync(process.execPath, process.argv.slice(1), options);
  return JSON.parse(done.stdout.trim().split("\n").at(-1));
}

const tokens = await decode();
console.log(JSON.stringify(tokens));
if (process.env.GGML_BACKEND_PATH) {
  const without = decodeWithout();
  const equal = JSON.stringify(without) == JSON.stringify(tokens);
  if (!equal) console.log(JSON.stringify(without), "without the plug-in");
  console.log(equal ? `equal: ${tokens.length} tokens with and without the plug-in` : "not equal");
  process.exitCode = equal ? 0 : 3;
}
