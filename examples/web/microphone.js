// Runs on the audio thread: hands on the samples of a microphone as they come, channels averaged.

const BLOCK = 1600;

class Microphone extends AudioWorkletProcessor {
  block = new Float32Array(BLOCK);
  filled = 0;

  process([channels]) {
    for (let n = 0; n < (channels[0]?.length ?? 0); n++) {
      this.block[this.filled++] = channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length;
      if (this.filled === BLOCK) {
        this.port.postMessage(this.block, [this.block.buffer]);
        this.block = new Float32Array(BLOCK);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
