// The page: hands audio to the worker, and shows what it answers. document.body.dataset.state says what it is doing.

const DOUBTFUL = 0.5; // confidence below which a word is underlined
const BLOCK_SECONDS = 0.1; // of a recording handed over at a time

const element = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
let rate; // of the model, in Hz
let stopMicrophone; // while it is heard

function enter(state) {
  document.body.dataset.state = state;
  element("file").disabled = state !== "ready";
  element("microphone").disabled = state !== "ready" && state !== "listening";
  element("microphone").textContent = state === "listening" ? "Stop" : "Start the microphone";
}

function begin(state) {
  element("problem").textContent = "";
  for (const id of ["words", "audio", "factor", "memory"]) element(id).replaceChildren();
  worker.postMessage({ start: true });
  enter(state);
}

function report(problem) {
  element("problem").textContent = problem;
  enter(rate ? "ready" : "failed");
}

function finish() {
  enter("finishing");
  worker.postMessage({ finish: true });
}

async function listen() {
  enter("opening");
  let stream;
  // The browser resamples. "playback" has the longest buffers: on a busy computer short ones run dry.
  const context = new AudioContext({ sampleRate: rate, latencyHint: "playback" });
  try {
    // Without these, browsers change the sound for the ears of people.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    await context.audioWorklet.addModule("microphone.js");
    const source = context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    begin("listening");
    node.port.onmessage = ({ data }) => worker.postMessage({ samples: data }, [data.buffer]);
    source.connect(node);
    stopMicrophone = () => {
      node.port.onmessage = null;
      stream.getTracks().forEach((track) => track.stop());
      context.close();
      finish();
    };
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    context.close();
    report(`The microphone cannot be heard (${error.message}): connect one and allow it, or choose a recording.`);
  }
}

async function read(file) {
  enter("decoding");
  try {
    const decoder = new OfflineAudioContext(1, 1, rate); // what it decodes has its rate
    const audio = await decoder.decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: audio.numberOfChannels }, (_, index) => audio.getChannelData(index));
    const samples = channels[0].map((_, n) => channels.reduce((sum, channel) => sum + channel[n], 0) / channels.length);
    begin("reading");
    const size = Math.round(BLOCK_SECONDS * rate);
    for (let start = 0; start < samples.length; start += size)
      worker.postMessage({ samples: samples.slice(start, start + size) });
    finish();
  } catch (error) {
    report(`${file.name} cannot be decoded (${error.message}): choose a recording, such as a WAV or MP3 file.`);
  }
}

function wordElement({ text, start, end, confidence }, kind) {
  const word = document.createElement("span");
  word.className = `word ${kind} ${confidence < DOUBTFUL ? "doubtful" : ""}`;
  Object.assign(word.dataset, { text, start, end, confidence });
  const times = document.createElement("small");
  times.textContent = `${start.toFixed(2)} to ${end.toFixed(2)} s`;
  const sureness = document.createElement("small");
  sureness.textContent = `${Math.round(100 * confidence)} %`;
  word.append(text, times, sureness);
  return word;
}

function show({ segments, words, audioSeconds, computeSeconds, memory, finished }) {
  const shown = element("words");
  shown.querySelectorAll(".partial").forEach((word) => word.remove());
  shown.append(
    ...segments.flat().map((word) => wordElement(word, "final")),
    ...words.map((word) => wordElement(word, "partial")),
  );
  Object.assign(document.body.dataset, { audio: audioSeconds, compute: computeSeconds, memory });
  element("audio").textContent = `${audioSeconds.toFixed(1)} s`;
  element("factor").textContent = audioSeconds ? (computeSeconds / audioSeconds).toFixed(3) : "";
  element("memory").textContent = `${(memory / 2 ** 20).toFixed(1)} MiB`;
  if (finished) enter("ready");
}

worker.onmessage = ({ data: { ready, update, error } }) => {
  if (error) return report(`The recogniser stopped (${error}): load the page again.`);
  if (update) return show(update);
  rate = ready.rate;
  element("model").textContent = ready.name;
  element("check").textContent = ready.difference.toExponential(1);
  enter("ready");
};
worker.onerror = ({ message }) => report(`The recogniser did not start (${message}): build the page again.`);
element("microphone").onclick = () => (document.body.dataset.state === "listening" ? stopMicrophone() : listen());
element("file").onchange = ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same one can be chosen again
  if (file) read(file);
};
