// The part of ONNX Runtime's C interface that recognise.c calls, where its header is not at hand.
//
// The table of functions only ever grows at its end (onnxruntime_c_api.h), so that each has kept its place since 1.0.
// Packages for Python hold the library without the header; releases hold both: then compile with -DORT_HEADER.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;

enum { ORT_LOGGING_LEVEL_ERROR = 3, OrtArenaAllocator = 1, OrtMemTypeDefault = 0, ORT_API_VERSION = 17 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9 };

typedef struct {
    void *places_0_1[2];
    const char *(*GetErrorMessage)(const OrtStatus *);
    OrtStatus *(*CreateEnv)(int level, const char *name, OrtEnv **);
    void *places_4_6[3];
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);
    void *place_8;
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names, const OrtValue *const *inputs,
                      size_t num_inputs, const char *const *output_names, size_t num_outputs, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    void *places_11_23[13];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);
    void *places_25_48[24];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                                 size_t rank, int type, OrtValue **);
    void *places_50_68[19];
    OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int kind, OrtMemoryInfo **);
} OrtApi;

typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);
