// Recognises off the page's thread. Takes { start }, { samples } and { finish }; answers { ready }, { update }, { error }.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.js";

import { difference } from "./features.js";
import { Network, Recogniser } from "./recogniser.js";

// ONNX Runtime does not say how much memory it holds: it is asked of the object that holds it.
const memories = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(...settings) {
    super(...settings);
    memories.push(this);
  }
};

const here = (name) => new URL(name, import.meta.url).href;
let recogniser;
let computeSeconds = 0;

async function load() {
  const model = await (await fetch(here("./model.json"))).json();
  const check = await (await fetch(here("./check.json"))).json();
  ort.env.wasm.numThreads = 1; // more would need a server that isolates the page
  ort.env.wasm.wasmPaths = { wasm: here("./onnxruntime/ort-wasm-simd-threaded.wasm") };
  const session = await ort.InferenceSession.create(here(`./${model.file}`), { executionProviders: ["wasm"] });
  const network = new Network(ort, session, model);
  await network.step(new Float32Array(model.constants.WINDOW_FRAMES * model.constants.NUM_MEL_BINS), 1); // the slowest
  recogniser = new Recogniser(model, network);
  postMessage({ ready: { name: model.name, rate: model.constants.SAMPLE_RATE, difference: difference(model, check) } });
}

async function follow({ start, samples, finish }) {
  if (start) {
    recogniser.reset();
    computeSeconds = 0;
    return;
  }
  const begun = performance.now();
  const { transcript } = recogniser;
  const before = transcript.numFrames;
  await (finish ? recogniser.finish() : recogniser.accept(samples));
  const news = finish || transcript.numFrames > before;
  const words = news ? transcript.words : [];
  computeSeconds += (performance.now() - begun) / 1000;
  if (!news) return;
  const audioSeconds = Math.min(recogniser.audioSeconds, transcript.audioSeconds); // less the silence that follows
  const memory = memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0);
  const segments = transcript.segments.splice(0);
  postMessage({ update: { segments, words, audioSeconds, computeSeconds, memory, finished: Boolean(finish) } });
}

// One message after the other: a step lasts longer than a block of audio.
let turn = load();
const fail = (error) => postMessage({ error: error.message });
turn.catch(fail);
onmessage = ({ data }) => {
  turn = turn.then(() => follow(data));
  turn.catch(fail);
};
