// Log-mel features of audio that arrives in pieces: what conformer/filterbank.py computes for `features.kind` "kaldi".

export class LogMel {
  // `constants` are those of conformer/artefacts/host.py; `emit(features, level)` takes each frame, and how loud it is
  // in dB.
  constructor(constants, emit) {
    this.constants = constants;
    this.emit = emit;
    this.history = new Float32Array(4 * constants.FRAME_SAMPLES); // sample n lies at n % length
    this.numSamples = 0; // received
    this.numFrames = 0; // given out
    this.fourier = new Fourier(constants.FFT_SIZE);
  }

  // Takes the next samples, in [-1, 1), any number of them.
  accept(samples) {
    const { FRAME_SAMPLES, SHIFT_SAMPLES, LEFT_SAMPLES } = this.constants;
    for (const sample of samples) {
      this.history[this.numSamples++ % this.history.length] = sample;
      // The frames before the audio are reflected about its beginning: they wait until that is complete.
      const room = this.numSamples + LEFT_SAMPLES - FRAME_SAMPLES;
      if (room >= 0) this.#emitUpTo(Math.floor(room / SHIFT_SAMPLES) + 1);
    }
  }

  // Ends the audio: the last frames reach past its end, where it is reflected.
  flush() {
    const { SHIFT_SAMPLES } = this.constants;
    if (this.numSamples) this.#emitUpTo(Math.floor((this.numSamples + Math.floor(SHIFT_SAMPLES / 2)) / SHIFT_SAMPLES));
  }

  #emitUpTo(end) {
    for (; this.numFrames < end; this.numFrames++) this.#frame();
  }

  #frame() {
    const { FRAME_SAMPLES, SHIFT_SAMPLES, LEFT_SAMPLES, INT16_SCALE, PREEMPHASIS, ANALYSIS_WINDOW } = this.constants;
    const { real, imaginary } = this.fourier;
    const start = this.numFrames * SHIFT_SAMPLES - LEFT_SAMPLES;
    const length = this.numSamples;
    let mean = 0;
    real.fill(0);
    imaginary.fill(0);
    for (let n = 0; n < FRAME_SAMPLES; n++) {
      let place = (((start + n) % (2 * length)) + 2 * length) % (2 * length);
      if (place >= length) place = 2 * length - 1 - place; // reflected, the edge sample repeated
      real[n] = this.history[place % this.history.length] * INT16_SCALE;
      mean += real[n];
    }
    mean /= FRAME_SAMPLES;
    for (let n = FRAME_SAMPLES - 1; n >= 0; n--) {
      const before = n ? real[n - 1] - mean : 0;
      real[n] = (real[n] - mean - PREEMPHASIS * before) * ANALYSIS_WINDOW[n];
    }
    this.fourier.transform();
    this.#emitFilters(real, imaginary);
  }

  #emitFilters(real, imaginary) {
    const { NUM_MEL_BINS, FILTER_START, FILTER_SIZE, FILTER_WEIGHTS, LOG_FLOOR } = this.constants;
    const features = new Float32Array(NUM_MEL_BINS);
    let weight = 0;
    let total = 0;
    for (let m = 0; m < NUM_MEL_BINS; m++) {
      let energy = 0;
      for (let k = FILTER_START[m]; k < FILTER_START[m] + FILTER_SIZE[m]; k++)
        energy += FILTER_WEIGHTS[weight++] * (real[k] * real[k] + imaginary[k] * imaginary[k]);
      features[m] = Math.log(Math.max(energy, LOG_FLOOR));
      total += energy;
    }
    this.emit(features, 10 * Math.log10(Math.max(total, LOG_FLOOR)));
  }
}

// The largest difference of a feature from Python's, over the sound of check.json.
export function difference(model, { samples, features }) {
  let largest = 0;
  let place = 0;
  const logMel = new LogMel(model.constants, (frame) => {
    for (const value of frame) largest = Math.max(largest, Math.abs(value - features[place++]));
  });
  logMel.accept(samples.map((sample) => sample / model.constants.INT16_SCALE));
  logMel.flush();
  return place === features.length ? largest : Infinity;
}

// The discrete Fourier transform of `real` and `imaginary`, in place (Cooley and Tukey, 1965, radix 2).
class Fourier {
  constructor(size) {
    this.size = size;
    this.real = new Float64Array(size);
    this.imaginary = new Float64Array(size);
    this.cosines = Float64Array.from({ length: size / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / size));
    this.sines = Float64Array.from({ length: size / 2 }, (_, k) => Math.sin((2 * Math.PI * k) / size));
  }

  transform() {
    const { size, real, imaginary, cosines, sines } = this;
    for (let i = 1, j = 0; i < size; i++) {
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) [real[i], real[j]] = [real[j], real[i]]; // the imaginary parts are all zero
    }
    for (let half = 1; half < size; half *= 2)
      for (let start = 0; start < size; start += 2 * half)
        for (let k = 0; k < half; k++) {
          const a = start + k;
          const b = a + half;
          const turn = (k * size) / 2 / half;
          const re = real[b] * cosines[turn] + imaginary[b] * sines[turn];
          const im = imaginary[b] * cosines[turn] - real[b] * sines[turn];
          real[b] = real[a] - re;
          imaginary[b] = imaginary[a] - im;
          real[a] += re;
          imaginary[a] += im;
        }
  }
}
