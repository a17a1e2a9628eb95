// SPDX-License-Identifier: Apache-2.0
//
// A program of somebody who uses node-llama-cpp: it prompts a model with fixed tokens and prints the most likely ones that follow.
// It knows nothing of AMLA; GGML_BACKEND_PATH does.
//
//     node node_decode.mjs MODEL PROMPT_TOKENS STEPS
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/"); // the package is where the program runs, not where this file lies
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const [model_path, n_prompt, n_steps] = process.argv.slice(2);

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
console.log(JSON.stringify(tokens));
await context.dispose();
await llama.dispose();
