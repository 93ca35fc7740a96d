/* A stand-in for the NVIDIA driver: the functions that the runtime calls, over this process' memory.

   It computes nothing: what a graph launches goes to a hook that the test sets. It is strict
   where a GPU would only misbehave. Work on a stream is done when somebody waits for it and not
   before, so that a wait that is missing shows. Memory from it holds garbage. Freed handles stay
   known, so that using them again is an error and not an accident. Everything refused is written
   to a log, with the reason. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
    LAUNCH_FAILED = 719
};

enum { MAX_SHARED = 232448, STATIC_SHARED = 48 << 10, MAX_THREADS = 1024, MAX_GRID_YZ = 65535 };

typedef struct {
    size_t srcXInBytes, srcY;
    unsigned srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    void *srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    unsigned dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    void *dstArray;
    size_t dstPitch, WidthInBytes, Height;
} Memcpy2D;

typedef struct {
    void *func;
    unsigned grid[3], block[3], sharedMemBytes;
    void **kernelParams, **extra;
    void *kern, *ctx;
} KernelNodeParams;

typedef int (*Hook)(const void *image, size_t image_bytes, const char *function, const unsigned *grid, const unsigned *block,
                    unsigned shared_bytes, void **parameters);

/* ---- handles ---- */

typedef enum { CONTEXT, STREAM, EVENT, MODULE, FUNCTION, GRAPH, NODE, EXEC, KINDS } Kind;
static const char *const kind_names[KINDS] = {"context", "stream", "event", "module", "function", "graph", "node", "exec"};
static const uint64_t MAGIC = 0xE17A9E5C0DE5ull;

typedef struct Handle {
    uint64_t magic;
    Kind kind;
    int live;
    struct Handle *next;
} Handle;

typedef struct Operation {
    enum { COPY, COPY2D, FILL, RECORD, LAUNCH } type;
    void *to;
    const void *from;
    size_t bytes;
    int value;
    Memcpy2D copy2d;
    struct Event *event;
    uint64_t ticket;
    struct Exec *exec;
    struct Operation *next;
} Operation;

typedef struct Stream { Handle handle; Operation *first, *last; struct Graph *captured; } Stream;
typedef struct Event { Handle handle; Stream *stream; uint64_t recorded, reached; int timing; double milliseconds; } Event;
typedef struct Module { Handle handle; uint8_t *image; size_t bytes; } Module;
typedef struct Function { Handle handle; Module *module; char name[256]; char kinds[512]; int shared_limit; } Function;
typedef struct Node {
    Handle handle;
    struct Graph *graph;
    Function *function;
    unsigned grid[3], block[3], shared;
    int count;
    uint64_t values[512];
    struct Node *next;
} Node;
typedef struct Graph { Handle handle; Node *first, *last; } Graph;
typedef struct Exec { Handle handle; Node *first; } Exec;

typedef struct Memory { uintptr_t begin; size_t bytes; int device; struct Memory *next; } Memory;
typedef struct Declared { uint64_t image; char name[256]; char kinds[512]; struct Declared *next; } Declared;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* not held while the hook runs */
static Handle *handles;
static Memory *memories;
static Declared *declared;
static Handle context = {0};
static __thread Handle *current;
static Hook hook;
static int initialized, device_count = 1, capability = 90, version = 12080, references;
static size_t total_memory = (size_t)8 << 30, used_memory;
static char fail_name[128];
static CUresult fail_result;
static int fail_after;
static char violations[1 << 16];
static size_t violations_end;
static long launches, nodes_launched;

static CUresult refuse(CUresult result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t left = sizeof violations - violations_end;
    int written = vsnprintf(violations + violations_end, left, format, arguments);
    va_end(arguments);
    violations_end += written < (int)left - 2 ? (size_t)written : 0;
    if (violations_end + 2 < sizeof violations) violations[violations_end++] = '\n';
    violations[violations_end] = 0;
    return result;
}

/* The error that a test has ordered for this call, if it has. */
static CUresult ordered(const char *name) {
    if (strcmp(fail_name, name) != 0 || fail_after-- > 0) return SUCCESS;
    fail_name[0] = 0;
    return fail_result;
}

#define ENTER(needs_context)                                                                             \
    CUresult ordered_result = ordered(__func__);                                                         \
    if (ordered_result) return ordered_result;                                                           \
    if (!initialized) return refuse(NOT_INITIALIZED, "%s: before cuInit", __func__);                     \
    if ((needs_context) && (!current || !current->live))                                                 \
        return refuse(INVALID_CONTEXT, "%s: this thread has no current context", __func__);

static void *new_handle(size_t bytes, Kind kind) {
    Handle *handle = calloc(1, bytes);
    handle->magic = MAGIC;
    handle->kind = kind;
    handle->live = 1;
    if (kind == NODE || kind == FUNCTION) return handle; /* they are many, and end with their graph or module */
    pthread_mutex_lock(&mutex);
    handle->next = handles;
    handles = handle;
    pthread_mutex_unlock(&mutex);
    return handle;
}

static int known(const void *pointer) {
    int found = 0;
    pthread_mutex_lock(&mutex);
    for (Handle *handle = handles; handle && !found; handle = handle->next) found = handle == pointer;
    pthread_mutex_unlock(&mutex);
    return found;
}

static int valid(const void *pointer, Kind kind, const char *where) {
    const Handle *handle = pointer;
    if (!pointer || (kind != NODE && kind != FUNCTION && !known(pointer)) || handle->magic != MAGIC || handle->kind != kind) {
        refuse(INVALID_HANDLE, "%s: %p is no %s", where, pointer, kind_names[kind]);
        return 0;
    }
    if (!handle->live) refuse(INVALID_HANDLE, "%s: the %s %p is gone", where, kind_names[kind], pointer);
    return handle->live;
}

/* ---- memory ---- */

static Memory *memory_of(uintptr_t address, size_t bytes, int device) {
    Memory *found = NULL;
    pthread_mutex_lock(&mutex);
    for (Memory *memory = memories; memory && !found; memory = memory->next)
        if (memory->device == device && address >= memory->begin && address + bytes <= memory->begin + memory->bytes) found = memory;
    pthread_mutex_unlock(&mutex);
    return found;
}

static int inside(const char *where, uintptr_t address, size_t bytes, int device) {
    if (memory_of(address, bytes, device)) return 1;
    refuse(INVALID_VALUE, "%s: %zu bytes at %#zx are not in one %s allocation", where, bytes, (size_t)address, device ? "device" : "pinned");
    return 0;
}

static void *allocate(size_t bytes, int device) {
    void *memory = NULL;
    if (posix_memalign(&memory, 256, bytes)) return NULL;
    memset(memory, 0xA5, bytes);
    Memory *entry = calloc(1, sizeof *entry);
    entry->begin = (uintptr_t)memory;
    entry->bytes = bytes;
    entry->device = device;
    pthread_mutex_lock(&mutex);
    entry->next = memories;
    memories = entry;
    if (device) used_memory += bytes;
    pthread_mutex_unlock(&mutex);
    return memory;
}

static CUresult run_all(void);

static CUresult release(const char *where, uintptr_t address, int device) {
    run_all();
    pthread_mutex_lock(&mutex);
    Memory **place = &memories;
    while (*place && !((*place)->begin == address && (*place)->device == device)) place = &(*place)->next;
    Memory *entry = *place;
    if (entry) {
        *place = entry->next;
        if (device) used_memory -= entry->bytes;
    }
    pthread_mutex_unlock(&mutex);
    if (!entry) return refuse(INVALID_VALUE, "%s: %#zx was not allocated, or is free already", where, (size_t)address);
    memset((void *)entry->begin, 0xDD, entry->bytes);
    free((void *)entry->begin);
    free(entry);
    return SUCCESS;
}

/* ---- work on streams ---- */

static CUresult launch(Exec *exec) {
    launches++;
    for (Node *node = exec->first; node; node = node->next) {
        void *parameters[512];
        nodes_launched++;
        for (int i = 0; i < node->count; i++) {
            uint64_t value = node->values[i];
            if (node->function->kinds[i] == 'p' && value && !memory_of(value, 1, 1))
                return refuse(LAUNCH_FAILED, "launch of %s: argument %d points to %#zx, which is no memory of the GPU",
                              node->function->name, i, (size_t)value);
            parameters[i] = &node->values[i];
        }
        if (!node->function->module->handle.live) return refuse(LAUNCH_FAILED, "launch of %s: its module is gone", node->function->name);
        if (hook && hook(node->function->module->image, node->function->module->bytes, node->function->name, node->grid, node->block,
                         node->shared, parameters))
            return refuse(LAUNCH_FAILED, "launch of %s: the hook failed", node->function->name);
    }
    return SUCCESS;
}

static double clock_milliseconds;

static CUresult execute(Operation *operation) {
    const Memcpy2D *copy = &operation->copy2d;
    switch (operation->type) {
    case COPY: memcpy(operation->to, operation->from, operation->bytes); break;
    case FILL: memset(operation->to, operation->value, operation->bytes); break;
    case RECORD:
        operation->event->reached = operation->ticket;
        operation->event->milliseconds = clock_milliseconds += 1;
        break;
    case LAUNCH: return launch(operation->exec);
    case COPY2D:
        for (size_t row = 0; row < copy->Height; row++)
            memcpy((char *)copy->dstDevice + row * copy->dstPitch, (const char *)copy->srcHost + row * copy->srcPitch, copy->WidthInBytes);
    }
    return SUCCESS;
}

static void enqueue(Stream *stream, Operation operation) {
    Operation *entry = malloc(sizeof *entry);
    *entry = operation;
    entry->next = NULL;
    pthread_mutex_lock(&mutex);
    if (stream->last) stream->last->next = entry; else stream->first = entry;
    stream->last = entry;
    pthread_mutex_unlock(&mutex);
}

static Operation *dequeue(Stream *stream) {
    pthread_mutex_lock(&mutex);
    Operation *first = stream->first;
    if (first) stream->first = first->next;
    if (!stream->first) stream->last = NULL;
    pthread_mutex_unlock(&mutex);
    return first;
}

/* Work of the stream until the event has been reached, or all of it. */
static CUresult run(Stream *stream, Event *until) {
    CUresult result = SUCCESS;
    while (!(until && until->reached >= until->recorded)) {
        Operation *operation = dequeue(stream);
        if (!operation) break;
        CUresult this_one = execute(operation);
        result = result ? result : this_one;
        free(operation);
    }
    return result;
}

static CUresult run_all(void) {
    CUresult result = SUCCESS;
    for (Handle *handle = handles; handle; handle = handle->next)
        if (handle->kind == STREAM && handle->live) result |= run((Stream *)handle, NULL);
    return result;
}

/* ---- the driver's functions ---- */

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
    switch (error) {
    case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; return SUCCESS;
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; return SUCCESS;
    case NOT_INITIALIZED: *text = "CUDA_ERROR_NOT_INITIALIZED"; return SUCCESS;
    case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
    case INVALID_IMAGE: *text = "CUDA_ERROR_INVALID_IMAGE"; return SUCCESS;
    case INVALID_CONTEXT: *text = "CUDA_ERROR_INVALID_CONTEXT"; return SUCCESS;
    case NO_BINARY_FOR_GPU: *text = "CUDA_ERROR_NO_BINARY_FOR_GPU"; return SUCCESS;
    case INVALID_HANDLE: *text = "CUDA_ERROR_INVALID_HANDLE"; return SUCCESS;
    case NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; return SUCCESS;
    case LAUNCH_FAILED: *text = "CUDA_ERROR_LAUNCH_FAILED"; return SUCCESS;
    }
    *text = NULL;
    return INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    CUresult result = cuGetErrorName(error, text);
    if (!result) *text = "words of the stand-in";
    return result;
}

EXPORT CUresult cuInit(unsigned flags) {
    CUresult result = ordered(__func__);
    if (result) return result;
    if (flags) return refuse(INVALID_VALUE, "cuInit: flags");
    if (!device_count) return NO_DEVICE;
    initialized = 1;
    return SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *found) { *found = version; return SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int *count) { ENTER(0); *count = device_count; return SUCCESS; }

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(0);
    if (ordinal < 0 || ordinal >= device_count) return refuse(INVALID_DEVICE, "cuDeviceGet: %d", ordinal);
    *device = ordinal;
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(0);
    snprintf(name, (size_t)length, "Stand-in %d", device);
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    ENTER(0);
    switch (attribute) {
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    }
    return refuse(INVALID_VALUE, "cuDeviceGetAttribute: %d of device %d", attribute, device);
}

EXPORT CUresult cuDevicePrimaryCtxRetain(void **found, CUdevice device) {
    ENTER(0);
    if (device < 0 || device >= device_count) return refuse(INVALID_DEVICE, "cuDevicePrimaryCtxRetain: %d", device);
    context.magic = MAGIC;
    context.kind = CONTEXT;
    context.live = 1;
    references++;
    *found = &context;
    return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(0);
    if (!references) return refuse(INVALID_CONTEXT, "cuDevicePrimaryCtxRelease: device %d has none", device);
    context.live = --references > 0;
    return SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(void *found) {
    ENTER(0);
    if (found && (found != &context || !context.live)) return refuse(INVALID_CONTEXT, "cuCtxSetCurrent: %p is no context", found);
    current = found;
    return SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER(1);
    *free_bytes = total_memory - used_memory;
    *total = total_memory;
    return SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER(1);
    if (!bytes) return refuse(INVALID_VALUE, "cuMemAlloc: 0 bytes");
    if (bytes > total_memory - used_memory) return OUT_OF_MEMORY;
    *address = (CUdeviceptr)allocate(bytes, 1);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) { ENTER(1); return release(__func__, address, 1); }

EXPORT CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    ENTER(1);
    if (!bytes || flags) return refuse(INVALID_VALUE, "cuMemHostAlloc: %zu bytes, flags %u", bytes, flags);
    *address = allocate(bytes, 0);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFreeHost(void *address) { ENTER(1); return release(__func__, (uintptr_t)address, 0); }

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (!inside(__func__, to, bytes, 1) || !inside(__func__, (uintptr_t)from, bytes, 0)) return INVALID_VALUE;
    enqueue(stream, (Operation){.type = COPY, .to = (void *)to, .from = from, .bytes = bytes});
    return SUCCESS;
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (!inside(__func__, from, bytes, 1) || !inside(__func__, (uintptr_t)to, bytes, 0)) return INVALID_VALUE;
    enqueue(stream, (Operation){.type = COPY, .to = to, .from = (void *)from, .bytes = bytes});
    return SUCCESS;
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (!inside(__func__, from, bytes, 1) || !inside(__func__, to, bytes, 1)) return INVALID_VALUE;
    enqueue(stream, (Operation){.type = COPY, .to = (void *)to, .from = (void *)from, .bytes = bytes});
    return SUCCESS;
}

EXPORT CUresult cuMemcpy2DAsync_v2(const Memcpy2D *copy, Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (copy->srcMemoryType != 1 || copy->dstMemoryType != 2 || copy->srcXInBytes || copy->srcY || copy->dstXInBytes || copy->dstY)
        return refuse(INVALID_VALUE, "%s: only whole copies from pinned memory to the GPU are known", __func__);
    if (!copy->Height || !copy->WidthInBytes) return SUCCESS;
    if (copy->WidthInBytes > copy->srcPitch || copy->WidthInBytes > copy->dstPitch)
        return refuse(INVALID_VALUE, "%s: rows of %zu bytes overlap", __func__, copy->WidthInBytes);
    if (!inside(__func__, (uintptr_t)copy->srcHost, (copy->Height - 1) * copy->srcPitch + copy->WidthInBytes, 0) ||
        !inside(__func__, copy->dstDevice, (copy->Height - 1) * copy->dstPitch + copy->WidthInBytes, 1))
        return INVALID_VALUE;
    enqueue(stream, (Operation){.type = COPY2D, .copy2d = *copy});
    return SUCCESS;
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (!inside(__func__, to, bytes, 1)) return INVALID_VALUE;
    enqueue(stream, (Operation){.type = FILL, .to = (void *)to, .value = value, .bytes = bytes});
    return SUCCESS;
}

EXPORT CUresult cuStreamCreate(Stream **stream, unsigned flags) {
    ENTER(1);
    if (flags > 1) return refuse(INVALID_VALUE, "cuStreamCreate: flags %u", flags);
    *stream = new_handle(sizeof **stream, STREAM);
    return SUCCESS;
}

EXPORT CUresult cuStreamDestroy_v2(Stream *stream) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    CUresult result = run(stream, NULL);
    stream->handle.live = 0;
    return result;
}

EXPORT CUresult cuStreamSynchronize(Stream *stream) {
    ENTER(1);
    return valid(stream, STREAM, __func__) ? run(stream, NULL) : INVALID_HANDLE;
}

EXPORT CUresult cuEventCreate(Event **event, unsigned flags) {
    ENTER(1);
    *event = new_handle(sizeof **event, EVENT);
    (*event)->timing = !(flags & 2);
    return SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(Event *event) {
    ENTER(1);
    if (!valid(event, EVENT, __func__)) return INVALID_HANDLE;
    if (event->stream && event->stream->handle.live) run(event->stream, event);
    event->handle.live = 0;
    return SUCCESS;
}

EXPORT CUresult cuEventRecord(Event *event, Stream *stream) {
    ENTER(1);
    if (!valid(event, EVENT, __func__) || !valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    event->stream = stream;
    enqueue(stream, (Operation){.type = RECORD, .event = event, .ticket = ++event->recorded});
    return SUCCESS;
}

EXPORT CUresult cuEventSynchronize(Event *event) {
    ENTER(1);
    if (!valid(event, EVENT, __func__)) return INVALID_HANDLE;
    return event->stream ? run(event->stream, event) : SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, Event *begin, Event *end) {
    ENTER(1);
    if (!valid(begin, EVENT, __func__) || !valid(end, EVENT, __func__)) return INVALID_HANDLE;
    if (!begin->timing || !end->timing || !begin->recorded || !end->recorded)
        return refuse(INVALID_HANDLE, "%s: an event without a time", __func__);
    *milliseconds = (float)(end->milliseconds - begin->milliseconds);
    return SUCCESS;
}

/* ---- code ---- */

static uint64_t word(const uint8_t *from, int bytes) {
    uint64_t value = 0;
    memcpy(&value, from, (size_t)bytes);
    return value;
}

/* Bytes of an ELF file, which nobody tells: its tables of sections and segments lie at its end. */
static size_t elf_bytes(const uint8_t *image) {
    size_t program = word(image + 32, 8) + word(image + 54, 2) * word(image + 56, 2);
    size_t sections = word(image + 40, 8) + word(image + 58, 2) * word(image + 60, 2);
    return program > sections ? program : sections;
}

static uint64_t digest(const uint8_t *bytes, size_t count) {
    uint64_t value = 14695981039346656037ull;
    for (size_t i = 0; i < count; i++) value = (value ^ bytes[i]) * 1099511628211ull;
    return value;
}

EXPORT CUresult cuModuleLoadData(Module **module, const uint8_t *image) {
    ENTER(1);
    if (memcmp(image, "\177ELF", 4) != 0) return INVALID_IMAGE;
    unsigned made_for = (unsigned)word(image + 50, 1); /* zero in what tests invent */
    if (made_for && made_for != (unsigned)capability) return NO_BINARY_FOR_GPU;
    size_t bytes = elf_bytes(image);
    *module = new_handle(sizeof **module, MODULE);
    (*module)->image = malloc(bytes);
    (*module)->bytes = bytes;
    memcpy((*module)->image, image, bytes);
    return SUCCESS;
}

EXPORT CUresult cuModuleUnload(Module *module) {
    ENTER(1);
    if (!valid(module, MODULE, __func__)) return INVALID_HANDLE;
    module->handle.live = 0; /* the image stays: the hook may compare it */
    return SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(Function **function, Module *module, const char *name) {
    ENTER(1);
    if (!valid(module, MODULE, __func__)) return INVALID_HANDLE;
    if (!memmem(module->image, module->bytes, name, strlen(name) + 1)) return NOT_FOUND;
    uint64_t image = digest(module->image, module->bytes);
    *function = new_handle(sizeof **function, FUNCTION);
    (*function)->module = module;
    (*function)->shared_limit = STATIC_SHARED;
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    for (Declared *entry = declared; entry; entry = entry->next)
        if (entry->image == image && strcmp(entry->name, name) == 0) {
            memcpy((*function)->kinds, entry->kinds, sizeof entry->kinds);
            return SUCCESS;
        }
    return refuse(INVALID_VALUE, "cuModuleGetFunction: nobody has declared the parameters of %s", name);
}

EXPORT CUresult cuFuncSetAttribute(Function *function, int attribute, int value) {
    ENTER(1);
    if (!valid(function, FUNCTION, __func__)) return INVALID_HANDLE;
    if (attribute != 8 || value < 0 || value > MAX_SHARED)
        return refuse(INVALID_VALUE, "cuFuncSetAttribute: attribute %d of %s cannot be %d", attribute, function->name, value);
    function->shared_limit = value;
    return SUCCESS;
}

/* ---- graphs ---- */

EXPORT CUresult cuGraphCreate(Graph **graph, unsigned flags) {
    ENTER(1);
    if (flags) return refuse(INVALID_VALUE, "cuGraphCreate: flags");
    *graph = new_handle(sizeof **graph, GRAPH);
    return SUCCESS;
}

static CUresult check_node(const KernelNodeParams *params) {
    const Function *function = params->func;
    if (!valid(function, FUNCTION, "cuGraphAddKernelNode")) return INVALID_HANDLE;
    const unsigned *grid = params->grid, *block = params->block;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > MAX_GRID_YZ || grid[2] > MAX_GRID_YZ)
        return refuse(INVALID_VALUE, "%s: a grid of %u x %u x %u", function->name, grid[0], grid[1], grid[2]);
    if (!block[0] || !block[1] || !block[2] || (uint64_t)block[0] * block[1] * block[2] > MAX_THREADS)
        return refuse(INVALID_VALUE, "%s: a block of %u x %u x %u", function->name, block[0], block[1], block[2]);
    if (params->sharedMemBytes > (unsigned)function->shared_limit)
        return refuse(INVALID_VALUE, "%s: %u bytes of shared memory, allowed are %d", function->name, params->sharedMemBytes,
                      function->shared_limit);
    if (params->extra || params->kern || params->ctx) return refuse(INVALID_VALUE, "%s: fields that must be null", function->name);
    return SUCCESS;
}

/* A node after the graph's last one. Without a graph it is alone: a launch outside of any. */
static CUresult append(Graph *graph, const KernelNodeParams *params, Node **node) {
    CUresult result = check_node(params);
    if (result) return result;
    Node *added = new_handle(sizeof *added, NODE);
    added->graph = graph;
    added->function = params->func;
    memcpy(added->grid, params->grid, sizeof added->grid);
    memcpy(added->block, params->block, sizeof added->block);
    added->shared = params->sharedMemBytes;
    added->count = (int)strlen(added->function->kinds);
    for (int i = 0; i < added->count; i++) {
        char kind = added->function->kinds[i];
        memcpy(&added->values[i], params->kernelParams[i], kind == 'p' || kind == 'l' ? 8 : 4);
        if (kind == 'p' && added->values[i] && !memory_of(added->values[i], 1, 1))
            return refuse(INVALID_VALUE, "%s: argument %d points to %#zx, which is no memory of the GPU", added->function->name, i,
                          (size_t)added->values[i]);
    }
    if (graph) {
        if (graph->last) graph->last->next = added; else graph->first = added;
        graph->last = added;
    }
    *node = added;
    return SUCCESS;
}

EXPORT CUresult cuGraphAddKernelNode_v2(Node **node, Graph *graph, Node *const *dependencies, size_t count, const KernelNodeParams *params) {
    ENTER(1);
    if (!valid(graph, GRAPH, __func__)) return INVALID_HANDLE;
    for (size_t i = 0; i < count; i++) {
        if (!valid(dependencies[i], NODE, __func__)) return INVALID_HANDLE;
        if (dependencies[i]->graph != graph) return refuse(INVALID_VALUE, "%s: it depends on another graph's node", __func__);
    }
    if (graph->first && (count != 1 || dependencies[0] != graph->last))
        return refuse(INVALID_VALUE, "%s: it does not depend on the node before it", __func__);
    return append(graph, params, node);
}

EXPORT CUresult cuGraphInstantiateWithFlags(Exec **exec, Graph *graph, unsigned long long flags) {
    ENTER(1);
    if (!valid(graph, GRAPH, __func__)) return INVALID_HANDLE;
    if (flags) return refuse(INVALID_VALUE, "%s: flags %llu", __func__, flags);
    *exec = new_handle(sizeof **exec, EXEC);
    (*exec)->first = graph->first;
    return SUCCESS;
}

EXPORT CUresult cuGraphDestroy(Graph *graph) {
    ENTER(1);
    if (!valid(graph, GRAPH, __func__)) return INVALID_HANDLE;
    for (Node *node = graph->first; node; node = node->next) node->handle.live = 0;
    graph->handle.live = 0;
    return SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(Exec *exec) {
    ENTER(1);
    if (!valid(exec, EXEC, __func__)) return INVALID_HANDLE;
    exec->handle.live = 0;
    return SUCCESS;
}

EXPORT CUresult cuGraphLaunch(Exec *exec, Stream *stream) {
    ENTER(1);
    if (!valid(exec, EXEC, __func__) || !valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    enqueue(stream, (Operation){.type = LAUNCH, .exec = exec});
    return SUCCESS;
}

/* ---- single launches and capturing, which only tests do ---- */

EXPORT CUresult cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared, Stream *stream, void **parameters, void **extra) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    KernelNodeParams params = {.func = function, .grid = {grid_x, grid_y, grid_z}, .block = {block_x, block_y, block_z},
                               .sharedMemBytes = shared, .kernelParams = parameters, .extra = extra};
    Node *node;
    CUresult result = append(stream->captured, &params, &node);
    if (result || stream->captured) return result;
    Exec *exec = calloc(1, sizeof *exec); /* no handle: nobody will destroy it */
    exec->first = node;
    enqueue(stream, (Operation){.type = LAUNCH, .exec = exec});
    return SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (mode < 0 || mode > 2 || stream->captured) return refuse(INVALID_VALUE, "%s: mode %d", __func__, mode);
    stream->captured = new_handle(sizeof *stream->captured, GRAPH);
    return SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(Stream *stream, Graph **graph) {
    ENTER(1);
    if (!valid(stream, STREAM, __func__)) return INVALID_HANDLE;
    if (!stream->captured) return refuse(INVALID_VALUE, "%s: nothing is being captured", __func__);
    *graph = stream->captured;
    stream->captured = NULL;
    return SUCCESS;
}

EXPORT CUresult cuGraphGetNodes(Graph *graph, Node **nodes, size_t *count) {
    ENTER(1);
    if (!valid(graph, GRAPH, __func__)) return INVALID_HANDLE;
    size_t found = 0;
    for (Node *node = graph->first; node; node = node->next, found++)
        if (nodes && found < *count) nodes[found] = node;
    *count = found;
    return SUCCESS;
}

EXPORT CUresult cuGraphGetEdges(Graph *graph, Node **from, Node **to, size_t *count) {
    ENTER(1);
    if (!valid(graph, GRAPH, __func__)) return INVALID_HANDLE;
    size_t found = 0;
    for (Node *node = graph->first; node && node->next; node = node->next, found++)
        if (from && to && found < *count) from[found] = node, to[found] = node->next;
    *count = found;
    return SUCCESS;
}

EXPORT CUresult cuGraphKernelNodeGetParams_v2(Node *node, KernelNodeParams *params) {
    ENTER(1);
    if (!valid(node, NODE, __func__)) return INVALID_HANDLE;
    void **parameters = calloc((size_t)node->count + 1, sizeof *parameters); /* as long as the node lives, which is for ever here */
    for (int i = 0; i < node->count; i++) parameters[i] = &node->values[i];
    *params = (KernelNodeParams){.func = node->function, .sharedMemBytes = node->shared, .kernelParams = parameters};
    memcpy(params->grid, node->grid, sizeof node->grid);
    memcpy(params->block, node->block, sizeof node->block);
    return SUCCESS;
}

/* ---- for tests ---- */

EXPORT void fake_set_launch_hook(Hook wanted) { hook = wanted; }
EXPORT void fake_set_device_count(int count) { device_count = count; }
EXPORT void fake_set_capability(int value) { capability = value; }
EXPORT void fake_set_version(int value) { version = value; }
EXPORT void fake_set_total_memory(size_t bytes) { total_memory = bytes; }
EXPORT const char *fake_violations(void) { return violations; }
EXPORT long fake_launches(void) { return launches; }
EXPORT long fake_nodes_launched(void) { return nodes_launched; }

/* The call of this function after `after` others fails with `result`. */
EXPORT void fake_fail(const char *name, CUresult result, int after) {
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_result = result;
    fail_after = after;
}

/* kinds: p pointer, i int32, l int64, f float32, one for each parameter. */
EXPORT void fake_declare(const uint8_t *image, size_t bytes, const char *name, const char *kinds) {
    Declared *entry = calloc(1, sizeof *entry);
    entry->image = digest(image, bytes);
    snprintf(entry->name, sizeof entry->name, "%s", name);
    snprintf(entry->kinds, sizeof entry->kinds, "%s", kinds);
    entry->next = declared;
    declared = entry;
}

/* How many of a kind are alive: "device" and "pinned" memory, "context", "stream", "event", "module", "graph" or "exec". */
EXPORT long fake_live(const char *what) {
    long count = 0;
    for (Memory *memory = memories; memory; memory = memory->next) count += !strcmp(what, memory->device ? "device" : "pinned");
    for (Handle *handle = handles; handle; handle = handle->next)
        count += handle->live && !strcmp(what, kind_names[handle->kind]);
    return count + (strcmp(what, "context") ? 0 : references);
}

/* What is alive is forgotten, as when its process ends. */
EXPORT void fake_forget(void) {
    handles = NULL;
    memories = NULL;
    used_memory = 0;
    references = context.live = 0;
    current = NULL;
}

/* As after loading the library. */
EXPORT void fake_reset(void) {
    fake_forget();
    declared = NULL;
    hook = NULL;
    initialized = 0;
    device_count = 1;
    capability = 90;
    version = 12080;
    total_memory = (size_t)8 << 30;
    fail_name[0] = 0;
    violations[0] = 0;
    violations_end = 0;
    launches = nodes_launched = 0;
    clock_milliseconds = 0;
}

/* Bytes from an address to the end of the allocation that it is in. */
EXPORT size_t fake_allocated(uintptr_t address) {
    for (Memory *memory = memories; memory; memory = memory->next)
        if (address >= memory->begin && address < memory->begin + memory->bytes) return memory->begin + memory->bytes - address;
    return 0;
}

/* Called by the hook: how long the kernel that it stands for would have taken. Between two events there is a millisecond besides. */
EXPORT void fake_advance(double milliseconds) { clock_milliseconds += milliseconds; }

/* What a test has provoked and looked at. */
EXPORT void fake_forget_violations(void) {
    violations[0] = 0;
    violations_end = 0;
}
