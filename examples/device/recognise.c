// Recognises speech as it arrives, in plain C99: what a device needs beside the model and its runtime.
//
//   python examples/device/constants.py models/words_micro/onnx_int8.onnx > model.h
//   cc -std=c99 -O2 -I. -Iexamples/device examples/device/recognise.c -o recognise -lonnxruntime -lm
//   ./recognise models/words_micro/onnx_int8.onnx speech.wav
//   arecord -t raw -f S16_LE -r 16000 | ./recognise models/words_micro/onnx_int8.onnx -
//
// Audio is 16-bit, one channel, of the model's rate: a WAV file, or samples alone from standard input. The text so far
// is printed as it grows, on one line; with a third argument, the log-mel features are written to that file (float32).
//
// From top to bottom: the log-mel filterbank of conformer/filterbank.py, the windows of conformer/streaming/windows.py,
// the network's step and its state, greedy CTC decoding, and the audio's source. Memory is laid out when the program
// starts; a stream allocates nothing.

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#ifdef ORT_HEADER
#include <onnxruntime_c_api.h>
#else
#include "ort_subset.h"
#endif

static void fail(const char *culprit, const char *reason) {
    fprintf(stderr, "recognise: %s: %s\n", culprit, reason);
    exit(1);
}

// ------------------------------------------------------------ log-mel features

enum { HISTORY = 4 * FRAME_SAMPLES };  // samples kept: a frame reaches back one, and is reflected at both ends

typedef struct {
    int16_t history[HISTORY];  // the last samples; sample n lies at n % HISTORY
    long num_samples;          // received
    long num_frames;           // given out
} LogMel;

// In float, where a processor has no doubles (-DREAL=float), the faintest bins beside loud ones are less exact.
#ifndef REAL
#define REAL double
#endif
typedef REAL Real;
typedef char the_fft_needs_a_power_of_two[FFT_SIZE & (FFT_SIZE - 1) ? -1 : 1];

static Real cosines[FFT_SIZE / 2], sines[FFT_SIZE / 2];

static void prepare_fft(void) {
    for (int k = 0; k < FFT_SIZE / 2; k++) {
        cosines[k] = (Real)cos(2 * 3.14159265358979323846 * k / FFT_SIZE);
        sines[k] = (Real)sin(2 * 3.14159265358979323846 * k / FFT_SIZE);
    }
}

// The discrete Fourier transform in place (Cooley and Tukey, 1965, radix 2).
static void fft(Real *real, Real *imaginary) {
    for (int i = 1, j = 0; i < FFT_SIZE; i++) {
        int bit = FFT_SIZE / 2;
        for (; j & bit; bit /= 2) j ^= bit;
        j ^= bit;
        if (i < j) {
            const Real swapped = real[i];
            real[i] = real[j], real[j] = swapped;  // the imaginary parts are all zero
        }
    }
    for (int half = 1; half < FFT_SIZE; half *= 2)
        for (int start = 0; start < FFT_SIZE; start += 2 * half)
            for (int k = 0; k < half; k++) {
                const int a = start + k, b = a + half, turn = k * (FFT_SIZE / 2 / half);
                const Real c = cosines[turn], s = sines[turn];
                const Real re = real[b] * c + imaginary[b] * s, im = imaginary[b] * c - real[b] * s;
                real[b] = real[a] - re, imaginary[b] = imaginary[a] - im;
                real[a] += re, imaginary[a] += im;
            }
}

// The frame that begins at sample `start`, which may lie before the audio, or reach past its end.
static void log_mel_frame(const LogMel *mel, long start, float *features) {
    Real real[FFT_SIZE] = {0}, imaginary[FFT_SIZE] = {0}, mean = 0;
    float power[FFT_SIZE / 2 + 1];
    const long length = mel->num_samples;
    for (int n = 0; n < FRAME_SAMPLES; n++) {
        long place = ((start + n) % (2 * length) + 2 * length) % (2 * length);
        if (place >= length) place = 2 * length - 1 - place;  // reflected, the edge sample repeated
        real[n] = mel->history[place % HISTORY];
        mean += real[n];
    }
    mean /= FRAME_SAMPLES;
    for (int n = FRAME_SAMPLES - 1; n >= 0; n--) {
        const Real before = n ? real[n - 1] - mean : 0;
        real[n] = (real[n] - mean - PREEMPHASIS * before) * ANALYSIS_WINDOW[n];
    }
    fft(real, imaginary);
    for (int k = 0; k <= FFT_SIZE / 2; k++) power[k] = (float)(real[k] * real[k] + imaginary[k] * imaginary[k]);
    const float *weight = FILTER_WEIGHTS;
    for (int m = 0; m < NUM_MEL_BINS; m++) {
        float energy = 0;
        for (int k = 0; k < FILTER_SIZE[m]; k++) energy += *weight++ * power[FILTER_START[m] + k];
        features[m] = logf(fmaxf(energy, LOG_FLOOR));
    }
}

// ------------------------------------------------------------ the network

enum { NUM_INPUTS = 6, NUM_OUTPUTS = 3, NUM_FRAMES = CHUNK_SIZE + LOOK_AHEAD };
static const char *const INPUTS[NUM_INPUTS] = {"x",          "offset",     "required_cache_size",
                                               "attn_cache", "conv_cache", "attn_mask"};
static const char *const OUTPUTS[NUM_OUTPUTS] = {"log_probs", "next_attn_cache", "next_conv_cache"};

static const OrtApi *ort;
static OrtSession *session;
static OrtValue *inputs[2][NUM_INPUTS], *outputs[2][NUM_OUTPUTS];  // the state goes back and forth between the two
static float window[WINDOW_FRAMES * NUM_MEL_BINS], log_probs[CHUNK_SIZE * VOCAB_SIZE];
static int64_t offset, required_cache_size;
static bool valid_keys[LEFT_CONTEXT + CHUNK_SIZE];

static void check(OrtStatus *status) {
    if (status) fail("ONNX Runtime", ort->GetErrorMessage(status));
}

static OrtValue *tensor(void *data, size_t bytes, const int64_t *shape, size_t rank, int type) {
    static OrtMemoryInfo *memory;
    OrtValue *value;
    if (!memory) check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, rank, type, &value));
    return value;
}

static OrtValue *state(const int64_t *shape) {
    const size_t bytes = sizeof(float) * shape[0] * shape[1] * shape[2] * shape[3];
    void *zeros = calloc(1, bytes);
    if (!zeros) fail("memory", "the state of a stream does not fit");
    return tensor(zeros, bytes, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}

static void load(const char *path) {
    const int64_t window_shape[] = {1, WINDOW_FRAMES, NUM_MEL_BINS}, one[] = {1};
    const int64_t mask_shape[] = {1, 1, LEFT_CONTEXT + CHUNK_SIZE}, log_probs_shape[] = {1, CHUNK_SIZE, VOCAB_SIZE};
    OrtEnv *environment;
    OrtSessionOptions *options;
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) fail("ONNX Runtime", "too old: take 1.17.1 or newer");
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "recognise", &environment));
    check(ort->CreateSessionOptions(&options));
    check(ort->SetIntraOpNumThreads(options, 1));
    check(ort->CreateSession(environment, path, options, &session));
    for (int turn = 0; turn < 2; turn++) {
        OrtValue **in = inputs[turn];
        in[0] = tensor(window, sizeof window, window_shape, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        in[1] = tensor(&offset, sizeof offset, one, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        in[2] = tensor(&required_cache_size, sizeof offset, one, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
        in[3] = state(ATTN_CACHE_SHAPE);
        in[4] = state(CONV_CACHE_SHAPE);
        in[5] = tensor(valid_keys, sizeof valid_keys, mask_shape, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
    }
    for (int turn = 0; turn < 2; turn++) {
        outputs[turn][0] = tensor(log_probs, sizeof log_probs, log_probs_shape, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        outputs[turn][1] = inputs[!turn][3];
        outputs[turn][2] = inputs[!turn][4];
    }
}

static int of_chunk(int num_frames) { return num_frames < CHUNK_SIZE ? num_frames : CHUNK_SIZE; }

// Log-probabilities of the chunk in `window`, of which `num_frames` encoder frames are valid, look-ahead included.
static void step(int num_frames) {
    static int turn;
    const int64_t seen = offset < LEFT_CONTEXT ? offset : LEFT_CONTEXT;
    for (int key = 0; key < LEFT_CONTEXT + CHUNK_SIZE; key++)
        valid_keys[key] = key >= LEFT_CONTEXT - seen && key < LEFT_CONTEXT + num_frames;
    check(ort->Run(session, NULL, INPUTS, (const OrtValue *const *)inputs[turn], NUM_INPUTS, OUTPUTS, NUM_OUTPUTS,
                   outputs[turn]));
    offset += of_chunk(num_frames);
    turn = !turn;
}

// Prints the best unit of each frame; runs of one are merged, and blanks (0) dropped.
static void decode(int num_frames) {
    static int last;
    static bool begun, space;
    for (int frame = 0; frame < num_frames; frame++) {
        const float *scores = log_probs + frame * VOCAB_SIZE;
        int best = 0;
        for (int unit = 1; unit < VOCAB_SIZE; unit++)
            if (scores[unit] > scores[best]) best = unit;
        const bool emitted = best && best != last;
        last = best;
        if (emitted) {
            const char *token = TOKENS[best];
            if (strncmp(token, "\xe2\x96\x81", 3) == 0) {  // begins a word
                space = begun;
                token += 3;
            }
            if (!*token) continue;
            if (space) putchar(' ');
            fputs(token, stdout);
            begun = true;
            space = false;
        }
    }
    fflush(stdout);
}

// ------------------------------------------------------------ the stream

static LogMel mel;
static long num_features, num_encoded;  // feature frames in all, and encoder frames decoded
static int num_pending;                 // feature frames in `window`
static FILE *features_file;

static void encode(int num_frames) {
    step(num_frames);
    decode(of_chunk(num_frames));
    num_encoded += of_chunk(num_frames);
    // The next window begins with the end of this one, so that the front end of the network needs no state.
    num_pending = WINDOW_FRAMES - WINDOW_SHIFT_FRAMES;
    memmove(window, window + WINDOW_SHIFT_FRAMES * NUM_MEL_BINS, sizeof(float) * num_pending * NUM_MEL_BINS);
}

static void emit_frames(long end) {
    for (; mel.num_frames < end; mel.num_frames++) {
        float *features = window + num_pending * NUM_MEL_BINS;
        log_mel_frame(&mel, mel.num_frames * SHIFT_SAMPLES - LEFT_SAMPLES, features);
        if (features_file) fwrite(features, sizeof(float), NUM_MEL_BINS, features_file);
        num_features++;
        if (++num_pending == WINDOW_FRAMES) encode(NUM_FRAMES);
    }
}

static void accept(int16_t sample) {
    mel.history[mel.num_samples++ % HISTORY] = sample;
    // The frames before the audio are reflected about its beginning: they wait until that is complete.
    if (mel.num_samples + LEFT_SAMPLES >= FRAME_SAMPLES)
        emit_frames((mel.num_samples + LEFT_SAMPLES - FRAME_SAMPLES) / SHIFT_SAMPLES + 1);
}

static void finish(void) {
    if (mel.num_samples >= FRAME_SAMPLES)  // silence, in which the network hears that the last word has ended
        for (int n = 0; n < TRAILING_SAMPLES; n++) accept(0);
    if (mel.num_samples) emit_frames((mel.num_samples + SHIFT_SAMPLES / 2) / SHIFT_SAMPLES);
    const long frames = num_features <= RIGHT_CONTEXT ? 0 : (num_features - RIGHT_CONTEXT - 1) / SUBSAMPLING_FACTOR + 1;
    while (num_encoded < frames) {
        const long left = frames - num_encoded;
        memset(window + num_pending * NUM_MEL_BINS, 0, sizeof(float) * (WINDOW_FRAMES - num_pending) * NUM_MEL_BINS);
        encode(left < NUM_FRAMES ? (int)left : NUM_FRAMES);
    }
    putchar('\n');
}

static uint32_t little_endian(const unsigned char *bytes, int count) {
    uint32_t value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

// Reads a WAV file up to its first sample, and returns how many bytes of samples it promises.
static uint32_t read_header(FILE *file, const char *path) {
    unsigned char bytes[16];
    bool known = false;
    if (fread(bytes, 1, 12, file) != 12 || memcmp(bytes, "RIFF", 4) || memcmp(bytes + 8, "WAVE", 4))
        fail(path, "is no WAV file: convert it, for example with ffmpeg -i IN -ac 1 -c:a pcm_s16le OUT.wav");
    for (;;) {
        if (fread(bytes, 1, 8, file) != 8) fail(path, "ends before its samples: record it again");
        uint32_t size = little_endian(bytes + 4, 4);
        if (!memcmp(bytes, "data", 4)) {
            if (!known) fail(path, "has samples before it says of which kind: convert it");
            return size;
        }
        uint32_t read = 0;
        if (!memcmp(bytes, "fmt ", 4) && size >= 16) {
            if (fread(bytes, 1, 16, file) != 16) fail(path, "ends within its header: record it again");
            read = 16;
            // 1 is PCM; the extensible format says so further on, and has 16 bits otherwise too.
            const uint32_t format = little_endian(bytes, 2);
            known = (format == 1 || format == 0xfffe) && little_endian(bytes + 2, 2) == 1 &&
                    little_endian(bytes + 4, 4) == SAMPLE_RATE && little_endian(bytes + 14, 2) == 16;
            if (!known) fail(path, "must have one channel of 16-bit samples at the model's rate: convert it");
        }
        for (size += size % 2; read < size; read++)
            if (getc(file) == EOF) fail(path, "ends before its samples: record it again");
    }
}

int main(int count, char **arguments) {
    if (count < 3 || count > 4) fail("usage", "recognise MODEL.onnx SPEECH.wav|- [FEATURES.f32]");
    const bool raw = !strcmp(arguments[2], "-");
    FILE *audio = raw ? stdin : fopen(arguments[2], "rb");
    if (!audio) fail(arguments[2], "cannot be read: check its name");
    uint32_t left = raw ? UINT32_MAX : read_header(audio, arguments[2]);
    if (count == 4 && !(features_file = fopen(arguments[3], "wb"))) fail(arguments[3], "cannot be written");
    prepare_fft();
    load(arguments[1]);
    unsigned char bytes[2];
    for (; (raw || left >= 2) && fread(bytes, 1, 2, audio) == 2; left -= 2)
        accept((int16_t)little_endian(bytes, 2));
    finish();
    if (features_file && fclose(features_file)) fail(arguments[3], "could not be written: free space");
    return 0;
}
