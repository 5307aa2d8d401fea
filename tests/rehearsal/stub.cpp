// A GPU driver without a GPU, for a process that runs torch's CUDA build (LD_PRELOAD).
//
// Device memory is address space that nobody touches, so that models of any size fit; the
// allocator of torch, streams, free memory and errors for want of it are the real ones. Kernels and
// matrix products do nothing and are counted: results mean nothing, control flow, memory,
// launches and waits are true.
//
// What must answer with a value is written here. build.py writes the rest: all other functions that
// the installed libraries import, each of which returns 0, which is success.

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#define API extern "C" __attribute__((visibility("default")))
#define OK return cudaSuccess

// Read and set to zero from Python; counting.py has the names, in this order.
enum { LAUNCHES, GEMMS, SYNCS, TO_DEVICE, TO_HOST, ON_DEVICE, MANAGED, PREFETCHES, COUNTERS };
extern "C" { std::atomic<long> rehearsal_counters[COUNTERS]; }
static auto& counted = rehearsal_counters;

// What stands for streams, events, modules: nobody looks behind it.
API void* rehearsal_handle() {
  static std::atomic<long> last{4096};
  return (void*)(last += 64);
}

// ---- Devices: how many, and how large (GiB), by the environment

static const int MOST = 8;
static thread_local int device = 0;

static double number(const char* name, double otherwise) {
  const char* text = getenv(name);
  return text ? atof(text) : otherwise;
}
static size_t total() { return (size_t)(number("REHEARSAL_GIB", 39.4) * (1ull << 30)); }
static int devices() {
  int there = (int)number("REHEARSAL_DEVICES", 1), seen = 0;
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) return there;
  for (const char* c = visible; *c; c++) seen += c == visible || *c == ',';
  return seen < there ? seen : there;
}

// An A100. Properties have the same numbers in the runtime's and the driver's enumeration.
static int attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 163 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 164 << 10;
    case cudaDevAttrWarpSize: case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrMultiProcessorCount: return 108;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrL2CacheSize: return 40 << 20;
    case cudaDevAttrClockRate: return 1410000;
    case cudaDevAttrMemoryClockRate: return 1215000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrComputeCapabilityMajor: return 8;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess: case cudaDevAttrCooperativeLaunch:
      return 1;
  }
  return 0;
}

// ---- Memory. The ledger is a file that all processes of a rehearsal write into, as they share a
// real card: what another one holds is not free. Without REHEARSAL_LEDGER each has its own card.

struct Slot { std::atomic<int> pid; std::atomic<long> used[MOST]; };
static const int SLOTS = 256;
static const long CONTEXT = 500l << 20;  // what a process has on a card before the first tensor

static Slot* ledger() {
  static Slot* slots = [] {
    const char* path = getenv("REHEARSAL_LEDGER");
    int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    size_t size = sizeof(Slot) * SLOTS;
    if (file >= 0 && ftruncate(file, size)) abort();
    int flags = file >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    return (Slot*)mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, file, 0);
  }();
  return slots;
}
static std::atomic<long>& held(int on) {  // by this process, its context included
  static thread_local Slot* mine = nullptr;
  int pid = getpid();
  for (Slot* slot = ledger(); !mine || mine->pid != pid; slot++) {
    int owner = slot->pid;
    bool free = owner == 0 || (owner != pid && kill(owner, 0));
    if (owner != pid && !(free && slot->pid.compare_exchange_strong(owner, pid))) continue;
    if (free) for (auto& used : slot->used) used = 0;
    mine = slot;
  }
  if (mine->used[on] == 0) mine->used[on] = CONTEXT;
  return mine->used[on];
}
static long free_memory(int on) {
  held(on);
  long used = 0;
  for (Slot* slot = ledger(); slot < ledger() + SLOTS; slot++)
    if (slot->pid && !kill(slot->pid, 0)) used += slot->used[on];
  long left = (long)total() - used;
  return left > 0 ? left : 0;
}

enum Kind { DEVICE, HOST, UNIFIED };
struct Block { size_t size; Kind kind; int device; };
static std::recursive_mutex& mutex() { static auto* m = new std::recursive_mutex; return *m; }
static std::map<char*, Block>& blocks() { static auto* b = new std::map<char*, Block>; return *b; }
static thread_local cudaError_t last_error = cudaSuccess;
static cudaError_t fail(cudaError_t error) { return last_error = error; }

static Block* block_of(const void* pointer) {
  auto after = blocks().upper_bound((char*)pointer);
  if (after == blocks().begin()) return nullptr;
  auto& [start, block] = *--after;
  return (char*)pointer < start + block.size ? &block : nullptr;
}
static cudaError_t take(void** out, size_t size, Kind kind) {
  std::lock_guard lock(mutex());
  if (kind != HOST) {
    if ((long)size > free_memory(device)) return fail(cudaErrorMemoryAllocation);
    held(device) += size;
  }
  if (kind == UNIFIED) counted[MANAGED] += size;
  *out = mmap(nullptr, size ? size : 1, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  blocks()[(char*)*out] = {size, kind, device};
  OK;
}
static cudaError_t release(void* pointer) {
  std::lock_guard lock(mutex());
  auto found = blocks().find((char*)pointer);
  if (!pointer) OK;
  if (found == blocks().end()) return fail(cudaErrorInvalidValue);
  Block block = found->second;
  if (block.kind != HOST) held(block.device) -= block.size;
  if (block.kind == UNIFIED) counted[MANAGED] -= block.size;
  munmap(pointer, block.size ? block.size : 1);
  blocks().erase(found);
  OK;
}
API cudaError_t cudaMalloc(void** p, size_t size) { return take(p, size, DEVICE); }
API cudaError_t cudaMallocManaged(void** p, size_t size, unsigned) { return take(p, size, UNIFIED); }
API cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) { return take(p, size, HOST); }
API cudaError_t cudaFree(void* p) { return release(p); }
API cudaError_t cudaFreeHost(void* p) { return release(p); }
API cudaError_t cudaHostGetDevicePointer(void** out, void* host, unsigned) { *out = host; OK; }
API cudaError_t cudaGetSymbolAddress(void** out, const void* symbol) { *out = (void*)symbol; OK; }
API cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *all = total();
  *free = free_memory(device);
  OK;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* pointer) {
  std::lock_guard lock(mutex());
  memset(out, 0, sizeof *out);
  Block* block = block_of(pointer);
  if (!block) OK;  // zero says: not registered
  out->type = block->kind == DEVICE ? cudaMemoryTypeDevice
            : block->kind == HOST ? cudaMemoryTypeHost : cudaMemoryTypeManaged;
  out->device = block->device;
  out->devicePointer = (void*)pointer;
  out->hostPointer = block->kind == DEVICE ? nullptr : (void*)pointer;
  OK;
}
API cudaError_t cudaMemPrefetchAsync(const void* p, size_t, cudaMemLocation, unsigned, cudaStream_t) {
  std::lock_guard lock(mutex());
  counted[PREFETCHES]++;
  Block* block = block_of(p);
  return block && block->kind == UNIFIED ? cudaSuccess : fail(cudaErrorInvalidValue);
}

// Small copies are made, since programs read back what they wrote; large ones would touch memory. A
// number that is read off the device is 0: what lies there is the work of no kernel, and would take
// another branch in every run. With REHEARSAL_READS it is what lies there.
static cudaError_t copy(void* to, const void* from, size_t size) {
  Block *target, *source;
  {
    std::lock_guard lock(mutex());
    target = block_of(to), source = block_of(from);
  }
  bool onto = target && target->kind != HOST, off = source && source->kind != HOST;
  if (onto || off) counted[!off ? TO_DEVICE : onto ? ON_DEVICE : TO_HOST] += size;
  static bool unread = !getenv("REHEARSAL_READS");
  if (off && !onto && size <= 8 && unread) memset(to, 0, size);
  else if (!onto || size <= 1 << 20) memcpy(to, from, size);
  OK;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  counted[SYNCS]++;
  return copy(to, from, size);
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
  return copy(to, from, n);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) {
  return copy(to, from, n);
}
API cudaError_t cudaMemset(void* p, int value, size_t size) {
  if (size <= 1 << 20) memset(p, value, size);
  OK;
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t) {
  return cudaMemset(p, value, size);
}

// ---- The runtime's answers

API cudaError_t cudaGetDeviceCount(int* n) {
  return (*n = devices()) ? cudaSuccess : fail(cudaErrorNoDevice);
}
API cudaError_t cudaGetDevice(int* out) { *out = device; OK; }
API cudaError_t cudaSetDevice(int to) {
  if (to < 0 || to >= devices()) return fail(cudaErrorInvalidDevice);
  held(device = to);
  OK;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  memset(out, 0, sizeof *out);
  strcpy(out->name, "Rehearsal of an A100");
  out->totalGlobalMem = total();
  out->major = 8;
  out->warpSize = 32;
  out->multiProcessorCount = 108;
  out->maxThreadsPerBlock = 1024;
  out->maxThreadsPerMultiProcessor = 2048;
  out->maxBlocksPerMultiProcessor = 32;
  out->regsPerBlock = out->regsPerMultiprocessor = 65536;
  out->sharedMemPerBlock = 48 << 10;
  out->sharedMemPerBlockOptin = 163 << 10;
  out->sharedMemPerMultiprocessor = 164 << 10;
  out->l2CacheSize = 40 << 20;
  out->textureAlignment = 512;
  out->unifiedAddressing = out->managedMemory = out->concurrentManagedAccess = 1;
  for (int i = 0; i < 3; i++) {
    out->maxThreadsDim[i] = i < 2 ? 1024 : 64;
    out->maxGridSize[i] = i ? 65535 : 2147483647;
  }
  OK;
}
API cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr which, int) {
  *out = attribute(which);
  OK;
}
API cudaError_t cudaDeviceGetPCIBusId(char* out, int, int) { strcpy(out, "0000:01:00.0"); OK; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) {
  *least = 0, *most = -5;
  OK;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 1; OK; }
API cudaError_t cudaDriverGetVersion(int* out) { *out = 13000; OK; }
API cudaError_t cudaRuntimeGetVersion(int* out) { *out = 13000; OK; }
API cudaError_t cudaDeviceSynchronize() { counted[SYNCS]++; OK; }
API cudaError_t cudaPeekAtLastError() { return last_error; }
API cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
API const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
API const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory"
       : error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "refused";
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* out) { *out = 0; OK; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { counted[SYNCS]++; OK; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* out) {
  *out = cudaStreamCaptureStatusNone;
  OK;
}
API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t s, cudaStreamCaptureStatus* out, unsigned long long*, cudaGraph_t*,
    const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  return cudaStreamIsCapturing(s, out);
}
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t call, void* with, unsigned) {
  call(s, cudaSuccess, with);
  OK;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void* with) { call(with); OK; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { counted[SYNCS]++; OK; }
API cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t, cudaEvent_t) { *out = 1; OK; }

// ---- Kernels

static thread_local struct { dim3 grid, block; size_t shared; void* stream; } call;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* s) {
  call = {grid, block, shared, s};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = call.grid, *block = call.block, *shared = call.shared, *(void**)stream = call.stream;
  OK;
}
API void** __cudaRegisterFatBinary(void*) { static void* binary[2]; return binary; }
API cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* f) { *out = (cudaKernel_t)f; OK; }
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void*) {
  memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->numRegs = 32;
  out->ptxVersion = out->binaryVersion = 80;
  out->maxDynamicSharedSizeBytes = 48 << 10;
  OK;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* out, const void*, int, size_t, unsigned) {
  *out = 2;
  OK;
}

// ---- cuBLAS

API cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* out) {
  *out = CUBLAS_DEFAULT_MATH;
  return CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* out) {
  *out = CUBLAS_POINTER_MODE_HOST;
  return CUBLAS_STATUS_SUCCESS;
}
API size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int wanted,
    cublasLtMatmulHeuristicResult_t* out, int* found) {
  memset(out, 0, sizeof *out * wanted);
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

// ---- The driver, which Triton and vLLM ask, and its management library

API int cuDriverGetVersion(int* out) { *out = 13000; return 0; }
API int cuDeviceGetCount(int* out) { *out = devices(); return 0; }
API int cuDeviceGet(int* out, int which) { *out = which; return 0; }
API int cuDeviceTotalMem_v2(size_t* out, int) { *out = total(); return 0; }
API int cuDeviceGetAttribute(int* out, int which, int) { *out = attribute(which); return 0; }
API int cuCtxGetCurrent(void** out) { *out = rehearsal_handle(); return 0; }
API int cuGetErrorString(int, const char** out) { *out = "refused"; return 0; }
API int cuModuleLoadData(void** out, const void*) { *out = rehearsal_handle(); return 0; }
API int cuModuleGetFunction(void** out, void*, const char*) { *out = rehearsal_handle(); return 0; }
API int cuFuncGetAttribute(int* out, int which, void*) {
  *out = which == 0 ? 1024 : which == 4 ? 32 : 0;  // threads of a block, registers
  return 0;
}
static int nothing() { return 0; }
static void* named(const char* name) {
  void* found = dlsym(RTLD_DEFAULT, name);
  return found ? found : (void*)nothing;
}
API int cuGetProcAddress_v2(const char* name, void** out, int, unsigned long long, int* result) {
  *out = named(name);
  if (result) *result = 0;
  return 0;
}
API cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** out, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* r) {
  *out = named(name);
  if (r) *r = cudaDriverEntryPointSuccess;
  OK;
}
API int nvmlDeviceGetCount_v2(unsigned* out) { *out = (unsigned)number("REHEARSAL_DEVICES", 1); return 0; }
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** out) {
  *out = (void*)(index + 1l);
  return 0;
}
API int nvmlInit_v2() { return 0; }
API int nvmlDeviceGetHandleByPciBusId_v2(const char*, void** out) { *out = (void*)1; return 0; }
API int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* n, void*) { *n = 0; return 0; }
API int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 8, *minor = 0;
  return 0;
}
API int nvmlDeviceGetName(void*, char* out, unsigned) { strcpy(out, "Rehearsal of an A100"); return 0; }
API int nvmlDeviceGetUUID(void* which, char* out, unsigned) {
  strcpy(out, "GPU-00000000-0000-0000-0000-000000000000");
  out[39] += (long)which;
  return 0;
}
API int nvmlDeviceGetMemoryInfo(void* which, unsigned long long* out) {
  out[0] = total(), out[1] = free_memory((long)which - 1), out[2] = out[0] - out[1];
  return 0;
}
API int nvmlDeviceGetP2PStatus(void*, void*, int, int* out) { *out = 0; return 0; }
API int nvmlSystemGetDriverVersion(char* out, unsigned) { strcpy(out, "580.00"); return 0; }
