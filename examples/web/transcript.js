// Log-probabilities in, words with times and confidence out: greedy CTC decoding, and conformer/streaming/transcript.py.

import { alignWords } from "./alignment.js";

const BLANK = 0;
const SPACE = "▁";

export class Transcript {
  // `model` is what build.py writes: model.json.
  constructor(model) {
    this.model = model;
    this.last = BLANK; // the best unit of the last frame
    this.tokens = []; // of the current segment: id, frame, and the log-probability there
    this.peaks = new Track(); // the best unit of each frame, and its log-probability
    this.levels = new Track(); // loudness of each feature frame
    this.spoken = 0; // feature frame at which the last word before the current segment ended
    this.segmentStart = 0; // encoder frame at which the current segment began
    this.numFrames = 0; // encoder frames decoded
    this.audioSeconds = Infinity; // no time is later: once the audio has ended, frames of silence follow it
    this.segments = []; // those that are over: lists of words
  }

  // Takes the log-probabilities of the next frames, in a row, and the next levels.
  decode(logProbs, numFrames, levels) {
    for (let frame = 0; frame < numFrames; frame++) this.#decodeFrame(logProbs, frame);
    levels.forEach((level) => this.levels.values.push(level));
    const { longest } = this.model.endpoint;
    if (this.#atEndpoint()) this.#endSegment();
    else if (this.#secondsSince(this.segmentStart) >= longest) this.#cutAtBoundary();
  }

  // No more frames will come: ends the last segment.
  finish() {
    this.#endSegment();
  }

  // The words of the current segment: { text, start, end, confidence }, times in seconds.
  get words() {
    return this.#wordsOf(this.tokens, []);
  }

  #decodeFrame(logProbs, frame) {
    const { VOCAB_SIZE } = this.model.constants;
    const scores = logProbs.subarray(frame * VOCAB_SIZE, (frame + 1) * VOCAB_SIZE);
    let id = 0;
    for (let unit = 1; unit < VOCAB_SIZE; unit++) if (scores[unit] > scores[id]) id = unit;
    if (id !== this.last && id !== BLANK) this.tokens.push({ id, frame: this.numFrames, logProb: scores[id] });
    this.last = id;
    this.peaks.values.push({ id, logProb: scores[id] });
    this.numFrames++;
  }

  #startsWord(token) {
    return this.model.tokens[token.id].startsWith(SPACE);
  }

  // Words that are spelled, each with its tokens less those that are nothing but a space.
  #group(tokens) {
    const groups = [];
    for (const token of tokens) {
      if (!groups.length || this.#startsWord(token)) groups.push([]);
      groups.at(-1).push(token);
    }
    return groups
      .map((group) => ({
        text: group.map((token) => this.model.tokens[token.id]).join("").replaceAll(SPACE, " ").trim(),
        tokens: group.filter((token) => this.model.tokens[token.id] !== SPACE),
      }))
      .filter(({ text }) => text);
  }

  // The words of tokens; those of `behind` follow them.
  #wordsOf(tokens, behind) {
    const { SUBSAMPLING_FACTOR: scale } = this.model.constants;
    const groups = this.#group(tokens);
    const start = this.levels.start;
    const emissions = [...groups, ...this.#group(behind)].map(({ tokens }) => [
      scale * tokens[0].frame - start,
      scale * (tokens.at(-1).frame + 1) - start,
    ]);
    const earliest = Math.max(this.spoken - start, 0);
    const spans = alignWords(this.levels.values, emissions, earliest, this.model.alignment);
    const confidences = this.#confidences(groups);
    return groups.map(({ text }, index) => {
      const [first, last] = spans[index].map((frame) => this.#seconds((start + frame) / scale));
      return { text, start: first, end: last, confidence: confidences[index] };
    });
  }

  // conformer/decode/confidence.py
  #confidences(groups) {
    const { own, context, offset, surest } = this.model.confidence;
    const evidence = groups.map(({ tokens }) => {
      const log = tokens.reduce((sum, token) => sum + this.#peak(token), 0);
      const bounded = Math.min(log, Math.log1p(-surest));
      return bounded - Math.log(-Math.expm1(bounded));
    });
    const mean = evidence.reduce((sum, value) => sum + value, 0) / evidence.length;
    return evidence.map((value) => 1 / (1 + Math.exp(-(own * value + context * mean + offset))));
  }

  // The largest log-probability of a token while it lasts.
  #peak(token) {
    const { start, values } = this.peaks;
    let peak = token.logProb;
    for (let place = token.frame - start; values[place]?.id === token.id; place++)
      peak = Math.max(peak, values[place].logProb);
    return peak;
  }

  #seconds(frame) {
    return Math.min(frame * this.model.frameSeconds, this.audioSeconds);
  }

  #secondsSince(frame) {
    return (this.numFrames - frame) * this.model.frameSeconds;
  }

  #atEndpoint() {
    const { silence_after_speech, silence_at_start, longest, grace } = this.model.endpoint;
    const spoken = this.tokens.length;
    const silence = this.#secondsSince(spoken ? this.tokens.at(-1).frame + 1 : this.segmentStart);
    const allowed = spoken ? silence_after_speech : silence_at_start;
    return silence >= allowed || this.#secondsSince(this.segmentStart) >= longest + grace;
  }

  // Ends the segment before the last word that has begun, if another is before it.
  #cutAtBoundary() {
    const cut = this.tokens.findLastIndex((token, index) => index && this.#startsWord(token));
    if (cut < 1) return;
    const [before, behind] = [this.tokens[cut - 1], this.tokens[cut]];
    const rest = this.tokens.splice(cut);
    this.#addSegment(this.tokens, Math.floor((before.frame + 1 + behind.frame) / 2), rest);
    this.tokens = rest;
  }

  #endSegment() {
    this.#addSegment(this.tokens, this.numFrames, []);
    this.tokens = [];
  }

  // Keeps a segment that ends before a frame, unless it has no words, and forgets what no later one needs.
  #addSegment(tokens, end, behind) {
    const { SUBSAMPLING_FACTOR: scale } = this.model.constants;
    const { CONTEXT, REACH } = this.model.alignment;
    const words = this.#wordsOf(tokens, behind);
    if (words.length) {
      this.spoken = Math.round((words.at(-1).end / this.model.frameSeconds) * scale);
      this.segments.push(words);
    }
    this.levels.forget(Math.min(scale * this.numFrames - CONTEXT, scale * end - REACH));
    this.peaks.forget(end);
    this.segmentStart = end;
  }
}

// The values of a stream's frames from `start` on.
class Track {
  start = 0;
  values = [];

  // Drops those before a frame.
  forget(frame) {
    if (frame > this.start) {
      this.values.splice(0, frame - this.start);
      this.start = frame;
    }
  }
}
