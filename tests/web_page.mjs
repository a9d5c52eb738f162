// Runs the page's recogniser under Node, with a session that answers what Python's answered: web_page.mjs FOLDER INPUT.
//
// INPUT holds, for each recording, its samples and the log-probabilities of its chunks. Printed is what the session was
// asked, the words, and how far the features of check.json are from Python's.

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, input] = process.argv.slice(2);
const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
const load = (name) => import(pathToFileURL(path.join(folder, name)));
const { difference } = await load("features.js");
const { Network, Recogniser } = await load("recogniser.js");

class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { type, data: Array.from(data, Number), dims });
  }
}

const model = read(path.join(folder, "model.json"));
const recordings = [];
for (const { samples, answers } of read(input)) {
  const asked = [];
  let state; // what the last step gave out
  const session = {
    run: async ({ attn_cache, conv_cache, ...rest }) => {
      const shapes = [attn_cache.dims, conv_cache.dims];
      const zeros = [attn_cache, conv_cache].every(({ data }) => data.every((value) => value === 0));
      const carried = state ? attn_cache === state.next_attn_cache && conv_cache === state.next_conv_cache : zeros;
      state = {
        next_attn_cache: new Tensor("float32", [1], attn_cache.dims),
        next_conv_cache: new Tensor("float32", [2], conv_cache.dims),
      };
      const answer = answers[asked.length];
      asked.push({ ...rest, carried, shapes });
      return { ...state, log_probs: { data: Float32Array.from(answer) } };
    },
  };
  const recogniser = new Recogniser(model, new Network({ Tensor }, session, model));
  for (let start = 0; start < samples.length; start += 777) // blocks of any size
    await recogniser.accept(Float32Array.from(samples.slice(start, start + 777)));
  const partial = recogniser.transcript.words;
  await recogniser.finish();
  recordings.push({ asked, partial, segments: recogniser.transcript.segments });
}
console.log(JSON.stringify({ difference: difference(model, read(path.join(folder, "check.json"))), recordings }));
