// A stream of audio in, words out: the windows of conformer/streaming/windows.py, and the network's state and mask.

import { LogMel } from "./features.js";
import { Transcript } from "./transcript.js";

export class Recogniser {
  // `network` has `reset()` and `step(window, numFrames)`, which resolves to the log-probabilities of a chunk of which
  // so many encoder frames are valid.
  constructor(model, network) {
    this.model = model;
    this.network = network;
    this.reset();
  }

  // Begins the next stream.
  reset() {
    this.network.reset();
    this.transcript = new Transcript(this.model);
    this.frames = []; // features that a window still needs
    this.levels = []; // of feature frames, not handed on
    this.numFeatures = 0; // feature frames in all
    this.numEncoded = 0; // encoder frames decoded
    this.logMel = new LogMel(this.model.constants, (features, level) => {
      this.frames.push(features);
      this.levels.push(level);
      this.numFeatures++;
    });
  }

  // Takes the next samples, in [-1, 1) at the model's rate.
  async accept(samples) {
    this.logMel.accept(samples);
    await this.#encodeWhole();
  }

  // Ends the stream: silence follows, in which the network hears that the last word has ended.
  async finish() {
    const { constants } = this.model;
    this.transcript.audioSeconds = this.audioSeconds;
    if (this.logMel.numSamples >= constants.FRAME_SAMPLES) this.logMel.accept(new Float32Array(constants.TRAILING_SAMPLES));
    this.logMel.flush();
    const beyond = this.numFeatures - constants.RIGHT_CONTEXT - 1;
    const end = beyond < 0 ? 0 : Math.floor(beyond / constants.SUBSAMPLING_FACTOR) + 1;
    const size = constants.CHUNK_SIZE + constants.LOOK_AHEAD;
    while (this.numEncoded < end) await this.#encode(Math.min(end - this.numEncoded, size));
    this.transcript.finish();
  }

  get audioSeconds() {
    return this.logMel.numSamples / this.model.constants.SAMPLE_RATE;
  }

  async #encodeWhole() {
    const { WINDOW_FRAMES, CHUNK_SIZE, LOOK_AHEAD } = this.model.constants;
    while (this.frames.length >= WINDOW_FRAMES) await this.#encode(CHUNK_SIZE + LOOK_AHEAD);
  }

  // Encodes the next window, of which `numFrames` encoder frames are valid, look-ahead included.
  async #encode(numFrames) {
    const { WINDOW_FRAMES, WINDOW_SHIFT_FRAMES, NUM_MEL_BINS, SUBSAMPLING_FACTOR, CHUNK_SIZE } = this.model.constants;
    const window = new Float32Array(WINDOW_FRAMES * NUM_MEL_BINS); // zeros behind the last frame
    this.frames.slice(0, WINDOW_FRAMES).forEach((frame, index) => window.set(frame, index * NUM_MEL_BINS));
    this.frames.splice(0, WINDOW_SHIFT_FRAMES);
    const added = Math.min(numFrames, CHUNK_SIZE);
    this.numEncoded += added;
    const levels = this.levels.splice(0, added * SUBSAMPLING_FACTOR);
    this.transcript.decode(await this.network.step(window, numFrames), added, levels);
  }
}

// The ONNX step with the interface of WeNet's CTC models (conformer/artefacts/onnx.py), run by ONNX Runtime.
export class Network {
  // `ort` is the module of onnxruntime-web, `session` its session of the model's file.
  constructor(ort, session, model) {
    this.ort = ort;
    this.session = session;
    this.model = model;
    this.reset();
  }

  reset() {
    this.framesSeen = 0;
    this.state = Object.entries(this.model.state).map(([name, shape]) => {
      const size = shape.reduce((product, length) => product * length, 1);
      return [name, new this.ort.Tensor("float32", new Float32Array(size), shape)];
    });
  }

  async step(window, numFrames) {
    const { WINDOW_FRAMES, NUM_MEL_BINS, CHUNK_SIZE } = this.model.constants;
    const { Tensor } = this.ort;
    const valid = validKeys(this.model.constants, this.framesSeen, numFrames);
    const outputs = await this.session.run({
      x: new Tensor("float32", window, [1, WINDOW_FRAMES, NUM_MEL_BINS]),
      offset: new Tensor("int64", [BigInt(this.framesSeen)], [1]),
      required_cache_size: new Tensor("int64", [0n], [1]),
      attn_mask: new Tensor("bool", valid, [1, 1, valid.length]),
      ...Object.fromEntries(this.state),
    });
    this.state = this.state.map(([name]) => [name, outputs[`next_${name}`]]);
    this.framesSeen += Math.min(numFrames, CHUNK_SIZE);
    return outputs.log_probs.data;
  }
}

// Which keys the next chunk attends to, whose window has `numFrames` valid frames; less those of its look-ahead, which
// the network tells by their features.
export function validKeys({ LEFT_CONTEXT, CHUNK_SIZE }, framesSeen, numFrames) {
  const first = LEFT_CONTEXT - Math.min(framesSeen, LEFT_CONTEXT);
  return Array.from({ length: LEFT_CONTEXT + CHUNK_SIZE }, (_, key) => key >= first && key < LEFT_CONTEXT + numFrames);
}
