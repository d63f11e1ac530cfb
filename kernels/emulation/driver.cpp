// A stand-in for libcuda, libnvrtc, libcufft and libnvidia-ml over the emulation: the part of their interfaces that
// beampilot calls. Loaded in their place it lets the very code that drives a GPU run, and be tested, where there is none.
//
// Faithful where mistakes hide: work is queued, and streams run when it pleases a seeded choice, held back only by events
// and by order within a stream; host memory is read and written when the copy runs, not when it is asked for; device
// memory is limited, starts as NaN, and ends at a page that cannot be touched; a kernel that breaks a rule is reported at the
// next call, and its text is that of the error.
//
// Environment: BEAMPILOT_EMULATED_SEED, BEAMPILOT_EMULATED_MEMORY (bytes, default 256 MiB), BEAMPILOT_EMULATED_FAULT
// (`memory`: one bit of device memory sticks; `compute`: kernels named selftest_sum are off by one; `launch`: kernels named
// gather fail; `ecc`: NVML reports uncorrected errors; `hot`: NVML reports 101 °C; `absent`: there is a driver and no card;
// `driver`: it does not start).
#include <dlfcn.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <complex>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "engine.h"

#ifndef EMULATION_FOLDER
#error "compile with -DEMULATION_FOLDER=\"…\", where emulation.h lies"
#endif

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, UNKNOWN = 999 };

struct Event {
    uint64_t ticket = 0;
};
struct Op {
    std::function<void()> run;
    uint64_t waits = 0;  // a ticket
};
struct Stream {
    std::deque<Op> queue;
};
struct LoadedModule {
    void* library;
    const bp::Module* module;
};
struct Function {
    LoadedModule* module;
    const bp::Kernel* kernel;
};
struct Plan {
    int rank, n[3], istride, idist, ostride, odist, batch;
    Stream* stream;
};

std::recursive_mutex lock;
using Lock = std::lock_guard<std::recursive_mutex>;

std::string environment(const char* name) {
    const char* value = getenv(name);
    return value ? value : "";
}

struct Driver {
    bp::Runner runner;
    bp::Random random;
    Stream none;
    std::vector<Stream*> streams{&none};
    std::map<uint64_t, double> tickets;  // done at, seconds
    uint64_t last_ticket = 0;
    std::map<uintptr_t, std::pair<size_t, size_t>> memory;  // address → bytes asked for, bytes mapped
    std::map<uintptr_t, size_t> pinned;
    size_t used = 0, limit = size_t(256) << 20, boast = 0;
    std::string fault = environment("BEAMPILOT_EMULATED_FAULT");
    std::string failed;
    int status = SUCCESS;
    std::vector<Plan*> plans;

    Driver() {
        std::string seed = environment("BEAMPILOT_EMULATED_SEED"), bytes = environment("BEAMPILOT_EMULATED_MEMORY");
        if (!bytes.empty()) limit = strtoull(bytes.c_str(), nullptr, 10);
        reseed(seed.empty() ? 1 : strtoull(seed.c_str(), nullptr, 10));
        struct sigaction action {};
        action.sa_sigaction = [](int, siginfo_t* info, void*) {
            char text[256];
            int n = snprintf(text, sizeof text, "emulation: touched address %p outside of memory, last kernel %s\n", info->si_addr,
                             instance().runner.kernel_name.c_str());
            if (write(2, text, size_t(n)) < 0) _exit(2);
            signal(SIGSEGV, SIG_DFL);
        };
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, nullptr);
    }

    static Driver& instance() {
        static Driver* driver = new Driver;  // outlives everything
        return *driver;
    }

    void reseed(uint64_t seed) {
        random.state = seed * 0x9e3779b97f4a7c15ull + 1;
        runner.random.state = seed * 0xd1342543de82ef95ull + 1;
    }

    bool runnable(const Stream& s) const { return !s.queue.empty() && (s.queue.front().waits == 0 || tickets.count(s.queue.front().waits)); }

    // One operation of any stream that can go on; false when there is none.
    bool step() {
        std::vector<Stream*> can;
        for (Stream* s : streams)
            if (runnable(*s)) can.push_back(s);
        if (can.empty()) return false;
        Stream* s = can[random.below(can.size())];
        Op op = std::move(s->queue.front());
        s->queue.pop_front();
        if (op.run && status == SUCCESS) op.run();
        return true;
    }
    void enqueue(Stream* s, std::function<void()> run, uint64_t waits = 0) {
        s->queue.push_back({std::move(run), waits});
        while (random.below(3) == 0 && step()) {
        }
    }
    int drain(Stream* s) {
        while (!s->queue.empty() && step()) {
        }
        return status;
    }
    int drain_all() {
        while (step()) {
        }
        return status;
    }
    uint64_t record(Stream* s) {
        uint64_t ticket = ++last_ticket;
        // A ticket is done even after an error: whoever waits shall learn of it.
        s->queue.push_back({nullptr, 0});
        s->queue.back().run = [this, ticket] { tickets[ticket] = now(); };
        return ticket;
    }
    static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

    void sick(int code, const std::string& text) {
        if (status == SUCCESS) {
            status = code;
            failed = text;
        }
    }
    bool is_pinned(const void* p, size_t bytes) const {
        auto after = pinned.upper_bound(reinterpret_cast<uintptr_t>(p));
        if (after == pinned.begin()) return false;
        auto at = std::prev(after);
        return reinterpret_cast<uintptr_t>(p) + bytes <= at->first + at->second;
    }
    bool is_device(uint64_t p, size_t bytes) const {
        auto after = memory.upper_bound(p);
        if (after == memory.begin()) return false;
        auto at = std::prev(after);
        return p + bytes <= at->first + at->second.first;
    }
    Stream* stream_of(void* handle) { return handle ? static_cast<Stream*>(handle) : &none; }
};

Driver& driver() { return Driver::instance(); }

// Real drivers keep such an error until the context is gone.
#define CHECK_STATUS \
    Lock guard(lock);  \
    Driver& d = driver(); \
    if (d.status != SUCCESS) return d.status

std::string folder_of_modules() {
    std::string folder = environment("BEAMPILOT_EMULATED_MODULES");
    if (folder.empty()) {
        Dl_info info{};
        folder = dladdr(reinterpret_cast<void*>(&folder_of_modules), &info) && info.dli_fname ? info.dli_fname : ".";
        size_t slash = folder.rfind('/');
        folder = (slash == std::string::npos ? std::string(".") : folder.substr(0, slash)) + "/modules";
    }
    mkdir(folder.c_str(), 0700);
    return folder;
}

uint64_t hash(const std::string& text) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (unsigned char c : text) h = (h ^ c) * 0x100000001b3ull;
    return h;
}

// Compiles `source` (what the stand-in for NVRTC returned) into a library, once.
std::string compile(const std::string& source, std::string& log) {
    std::string text = source + "\n";
    text += "extern \"C\" __attribute__((visibility(\"hidden\"))) bp::Engine* bp_engine = nullptr;\n";
    text += "extern \"C\" __attribute__((weak, visibility(\"hidden\"))) unsigned char __start_bp_shared, __stop_bp_shared;\n";
    text += "static const bp::Kernel bp_kernels[] = {\n";
    unsigned count = 0;
    for (size_t at = source.find("\nKERNEL void "); at != std::string::npos; at = source.find("\nKERNEL void ", at + 1)) {
        size_t from = at + strlen("\nKERNEL void "), to = source.find('(', from);
        std::string name = source.substr(from, to - from);
        text += "bp_kernel<&" + name + ">::entry(\"" + name + "\"),\n";
        ++count;
    }
    text += "{}};\nextern \"C\" bp::Module bp_module;\nbp::Module bp_module = {bp_kernels, " + std::to_string(count) +
            ", &__start_bp_shared, &__stop_bp_shared, &bp_engine};\n";
    char name[32];
    snprintf(name, sizeof name, "%016llx", static_cast<unsigned long long>(hash(text + __DATE__ __TIME__)));
    std::string base = folder_of_modules() + "/" + name, library = base + ".so";
    struct stat there {};
    if (stat(library.c_str(), &there) == 0) return library;
    std::string own = base + "." + std::to_string(getpid());
    FILE* out = fopen((own + ".cpp").c_str(), "w");
    if (!out) {
        log = own + ".cpp cannot be written";
        return "";
    }
    fwrite(text.data(), 1, text.size(), out);
    fclose(out);
    std::string compiler = environment("CXX").empty() ? "c++" : environment("CXX");
    std::string command = compiler + " -std=c++17 -O2 -g0 -w -fPIC -shared -fno-strict-aliasing -ffp-contract=off -DBEAMPILOT_EMULATION -I'" EMULATION_FOLDER
                          "' -o '" + own + ".so' '" + own + ".cpp' >'" + own + ".log' 2>&1";
    int code = system(command.c_str());
    if (code != 0) {
        if (FILE* in = fopen((own + ".log").c_str(), "r")) {
            char buffer[4096];
            size_t n = fread(buffer, 1, sizeof buffer, in);
            log.assign(buffer, n);
            fclose(in);
        }
    } else if (rename((own + ".so").c_str(), library.c_str()) != 0) {
        code = 1;
    }
    unlink((own + ".cpp").c_str());
    unlink((own + ".log").c_str());
    return code == 0 ? library : "";
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// For tests: another seed, another limit, and a fresh start after an error.
API void bp_emulation_reset(uint64_t seed, uint64_t limit) {
    Lock guard(lock);
    Driver& d = driver();
    for (Stream* s : d.streams) s->queue.clear();
    d.status = SUCCESS;
    d.failed.clear();
    d.reseed(seed);
    if (limit) d.limit = limit;
}
// Says that so many bytes more are free than can be had, as on a device that others use, too.
API void bp_emulation_boast(uint64_t bytes) {
    Lock guard(lock);
    driver().boast = bytes;
}
// Kernels of these names (with blanks around each) run without the barrier of this line; none with line 0.
API void bp_emulation_without_barrier(const char* kernels, int line) {
    Lock guard(lock);
    driver().runner.careless = kernels;
    driver().runner.careless_line = line;
}
API uint64_t bp_emulation_used() {
    Lock guard(lock);
    return driver().used;
}

// ---- libcuda ----

API int cuInit(unsigned) { return driver().fault == "absent" ? NO_DEVICE : driver().fault == "driver" ? UNKNOWN : SUCCESS; }
API int cuDriverGetVersion(int* v) { return *v = 12080, SUCCESS; }
API int cuDeviceGetCount(int* n) { return *n = 1, SUCCESS; }
API int cuDeviceGet(int* device, int ordinal) { return ordinal == 0 ? (*device = 0, SUCCESS) : 101; }
API int cuDeviceGetName(char* name, int length, int) { return snprintf(name, size_t(length), "emulated on the CPU"), SUCCESS; }
API int cuDeviceGetUuid_v2(unsigned char* id, int) {
    for (int i = 0; i < 16; ++i) id[i] = static_cast<unsigned char>(i);
    return SUCCESS;
}
API int cuDeviceGetUuid(unsigned char* id, int device) { return cuDeviceGetUuid_v2(id, device); }
API int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = driver().limit, SUCCESS; }
API int cuDeviceGetAttribute(int* value, int which, int) {
    switch (which) {
        case 75: *value = 1; break;         // compute capability 1.0: no GPU's, so that caches keep them apart
        case 16: *value = 2; break;         // multiprocessors
        case 97: *value = 166912; break;    // shared memory of a block, opted in
        case 13: *value = 1000000; break;   // clock, kHz
        case 36: *value = 1000000; break;   // memory clock, kHz
        case 37: *value = 64; break;        // bus width
        default: *value = 0;                // compute mode: default
    }
    return SUCCESS;
}
API int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &driver(), SUCCESS; }
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void*) { return SUCCESS; }
API int cuCtxSynchronize() {
    CHECK_STATUS;
    return d.drain_all();
}
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    Lock guard(lock);
    const size_t said = driver().limit + driver().boast;
    *total = said;
    *free = said > driver().used ? said - driver().used : 0;
    return SUCCESS;
}
API int cuMemAlloc_v2(uint64_t* p, size_t bytes) {
    CHECK_STATUS;
    if (bytes == 0) return INVALID_VALUE;
    const size_t page = 4096, whole = (bytes + 255) / 256 * 256;
    if (d.used + whole > d.limit) return OUT_OF_MEMORY;
    size_t mapped = (whole + page - 1) / page * page + page;
    void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    unsigned char* guard_page = static_cast<unsigned char*>(at) + mapped - page;
    mprotect(guard_page, page, PROT_NONE);
    unsigned char* begin = guard_page - whole;
    memset(begin, 0xff, whole);
    d.used += whole;
    d.memory[reinterpret_cast<uintptr_t>(begin)] = {bytes, mapped};
    *p = reinterpret_cast<uint64_t>(begin);
    return SUCCESS;
}
API int cuMemFree_v2(uint64_t p) {
    Lock guard(lock);
    Driver& d = driver();
    d.drain_all();
    auto at = d.memory.find(p);
    if (at == d.memory.end()) return INVALID_VALUE;
    size_t whole = (at->second.first + 255) / 256 * 256;
    uintptr_t end = p + whole;
    d.used -= whole;
    munmap(reinterpret_cast<void*>(end + 4096 - at->second.second), at->second.second);
    d.memory.erase(at);
    return d.status;
}
API int cuMemHostAlloc(void** p, size_t bytes, unsigned) {
    CHECK_STATUS;
    if (posix_memalign(p, 4096, bytes ? bytes : 1) != 0) return OUT_OF_MEMORY;
    memset(*p, 0xff, bytes);
    d.pinned[reinterpret_cast<uintptr_t>(*p)] = bytes;
    return SUCCESS;
}
API int cuMemFreeHost(void* p) {
    Lock guard(lock);
    driver().drain_all();
    driver().pinned.erase(reinterpret_cast<uintptr_t>(p));
    free(p);
    return SUCCESS;
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    CHECK_STATUS;
    if (!d.is_device(to, bytes)) return INVALID_VALUE;
    d.enqueue(d.stream_of(stream), [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return d.is_pinned(from, bytes) ? SUCCESS : d.drain(d.stream_of(stream));
}
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    CHECK_STATUS;
    if (!d.is_device(from, bytes)) return INVALID_VALUE;
    d.enqueue(d.stream_of(stream), [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return d.is_pinned(to, bytes) ? SUCCESS : d.drain(d.stream_of(stream));
}
API int cuMemsetD8Async(uint64_t p, unsigned char value, size_t bytes, void* stream) {
    CHECK_STATUS;
    if (!d.is_device(p, bytes)) return INVALID_VALUE;
    d.enqueue(d.stream_of(stream), [=] { memset(reinterpret_cast<void*>(p), value, bytes); });
    return SUCCESS;
}
API int cuStreamCreate(void** stream, unsigned) {
    CHECK_STATUS;
    Stream* s = new Stream;
    d.streams.push_back(s);
    *stream = s;
    return SUCCESS;
}
API int cuStreamDestroy_v2(void* stream) {
    Lock guard(lock);
    Driver& d = driver();
    d.drain(d.stream_of(stream));
    for (size_t i = 1; i < d.streams.size(); ++i) {
        if (d.streams[i] == stream) {
            delete d.streams[i];
            d.streams.erase(d.streams.begin() + long(i));
            return SUCCESS;
        }
    }
    return INVALID_HANDLE;
}
API int cuStreamSynchronize(void* stream) {
    CHECK_STATUS;
    return d.drain(d.stream_of(stream));
}
API int cuEventCreate(void** event, unsigned) { return *event = new Event, SUCCESS; }
API int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), SUCCESS; }
API int cuEventRecord(void* event, void* stream) {
    CHECK_STATUS;
    static_cast<Event*>(event)->ticket = d.record(d.stream_of(stream));
    return SUCCESS;
}
API int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    CHECK_STATUS;
    if (uint64_t ticket = static_cast<Event*>(event)->ticket) d.enqueue(d.stream_of(stream), nullptr, ticket);
    return SUCCESS;
}
API int cuEventSynchronize(void* event) {
    CHECK_STATUS;
    uint64_t ticket = static_cast<Event*>(event)->ticket;
    while (ticket && !d.tickets.count(ticket) && d.status == SUCCESS && d.step()) {
    }
    return d.status;
}
API int cuEventElapsedTime(float* ms, void* start, void* end) {
    CHECK_STATUS;
    *ms = float((d.tickets[static_cast<Event*>(end)->ticket] - d.tickets[static_cast<Event*>(start)->ticket]) * 1e3);
    return SUCCESS;
}
API int cuEventElapsedTime_v2(float* ms, void* start, void* end) { return cuEventElapsedTime(ms, start, end); }
API int cuModuleLoadData(void** module, const void* image) {
    CHECK_STATUS;
    std::string log, library = compile(static_cast<const char*>(image), log);
    void* handle = library.empty() ? nullptr : dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char* why = library.empty() ? log.c_str() : dlerror();
        fprintf(stderr, "emulation: a module cannot be loaded: %s\n", why);
        return INVALID_IMAGE;
    }
    *module = new LoadedModule{handle, static_cast<const bp::Module*>(dlsym(handle, "bp_module"))};
    return SUCCESS;
}
API int cuModuleUnload(void* module) {
    Lock guard(lock);
    driver().drain_all();
    delete static_cast<LoadedModule*>(module);  // the library stays: it is in the cache of this process
    return SUCCESS;
}
API int cuModuleGetFunction(void** function, void* module, const char* name) {
    CHECK_STATUS;
    auto* loaded = static_cast<LoadedModule*>(module);
    for (unsigned i = 0; i < loaded->module->count; ++i) {
        if (strcmp(loaded->module->kernels[i].name, name) == 0) {
            *function = new Function{loaded, &loaded->module->kernels[i]};
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
API int cuFuncSetAttribute(void*, int, int value) { return value <= int(bp::Runner::MOST_SHARED) ? SUCCESS : INVALID_VALUE; }
API int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                       void* stream, void** arguments, void**) {
    CHECK_STATUS;
    auto* f = static_cast<Function*>(function);
    const uint64_t threads = uint64_t(bx) * by * bz;
    if (!gx || !gy || !gz || !threads || threads > bp::Runner::MOST_THREADS || gy > 65535 || gz > 65535 || bz > 64) return INVALID_VALUE;
    if (shared > bp::Runner::MOST_SHARED) return INVALID_VALUE;
    auto packed = std::make_shared<std::vector<unsigned char>>();
    for (unsigned i = 0; i < f->kernel->arguments; ++i) {
        auto* from = static_cast<unsigned char*>(arguments[i]);
        packed->insert(packed->end(), from, from + f->kernel->sizes[i]);
    }
    packed->push_back(0);
    d.enqueue(d.stream_of(stream), [=, &d] {
        if (d.fault == "launch" && strcmp(f->kernel->name, "gather") == 0) {
            d.sick(LAUNCH_FAILED, "planted");
            return;
        }
        if (!d.runner.run(*f->module->module, *f->kernel, {gx, gy, gz}, {bx, by, bz}, shared, packed->data()))
            d.sick(LAUNCH_FAILED, d.runner.error);
        if (d.fault == "memory" && strcmp(f->kernel->name, "selftest_fill") == 0) {
            uint64_t to;
            memcpy(&to, packed->data(), 8);
            reinterpret_cast<unsigned char*>(to)[4097] |= 4;  // stuck at 1, whatever is written
        }
        if (d.fault == "compute" && strcmp(f->kernel->name, "selftest_sum") == 0) {
            uint64_t to;
            memcpy(&to, packed->data(), 8);
            *reinterpret_cast<unsigned*>(to) += 1;
        }
    });
    return SUCCESS;
}
API int cuGetErrorName(int code, const char** name) {
    switch (code) {
        case SUCCESS: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}
API int cuGetErrorString(int code, const char** text) {
    static std::string last;
    Lock guard(lock);
    const char* name = nullptr;
    cuGetErrorName(code, &name);
    last = code == LAUNCH_FAILED ? driver().failed : name;
    *text = last.c_str();
    return SUCCESS;
}

// ---- libnvrtc: hands the source on ----

struct Program {
    std::string text, log;
};
API int nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 8, 0; }
API int nvrtcCreateProgram(void** program, const char* source, const char*, int, const char* const*, const char* const*) {
    return *program = new Program{source, ""}, 0;
}
API int nvrtcCompileProgram(void* program, int count, const char* const* options) {
    auto* p = static_cast<Program*>(program);
    std::string defines = "// compiled for the emulation\n";
    for (int i = 0; i < count; ++i) {
        std::string option = options[i];
        if (option.rfind("-D", 0) != 0) continue;
        size_t is = option.find('=');
        defines += "#define " + option.substr(2, is - 2) + " " + (is == std::string::npos ? "1" : option.substr(is + 1)) + "\n";
    }
    p->text = defines + p->text;
    return compile(p->text, p->log).empty() ? 6 : 0;
}
API int nvrtcDestroyProgram(void** program) { return delete static_cast<Program*>(*program), 0; }
API int nvrtcGetCUBINSize(void* program, size_t* n) { return *n = static_cast<Program*>(program)->text.size() + 1, 0; }
API int nvrtcGetCUBIN(void* program, char* to) { return strcpy(to, static_cast<Program*>(program)->text.c_str()), 0; }
API int nvrtcGetPTXSize(void* program, size_t* n) { return nvrtcGetCUBINSize(program, n); }
API int nvrtcGetPTX(void* program, char* to) { return nvrtcGetCUBIN(program, to); }
API int nvrtcGetProgramLogSize(void* program, size_t* n) { return *n = static_cast<Program*>(program)->log.size() + 1, 0; }
API int nvrtcGetProgramLog(void* program, char* to) { return strcpy(to, static_cast<Program*>(program)->log.c_str()), 0; }
API const char* nvrtcGetErrorString(int code) { return code == 0 ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION"; }

// ---- libcufft: complex to complex, single precision outside, double inside ----

namespace {
using Complex = std::complex<double>;

void transform(const Complex* in, size_t stride, Complex* out, size_t n, const std::vector<Complex>& turns) {
    if (n == 1) {
        out[0] = in[0];
        return;
    }
    size_t radix = 2;
    while (n % radix) ++radix;
    const size_t part = n / radix, all = turns.size();
    for (size_t r = 0; r < radix; ++r) transform(in + r * stride, stride * radix, out + r * part, part, turns);
    std::vector<Complex> values(radix);
    for (size_t k = 0; k < part; ++k) {
        for (size_t r = 0; r < radix; ++r) values[r] = out[r * part + k] * turns[r * k * (all / n) % all];
        for (size_t q = 0; q < radix; ++q) {
            Complex sum = 0;
            for (size_t r = 0; r < radix; ++r) sum += values[r] * turns[r * q * part * (all / n) % all];
            out[q * part + k] = sum;
        }
    }
}

std::vector<Complex> turns_of(size_t n, int sign) {
    std::vector<Complex> turns(n);
    for (size_t i = 0; i < n; ++i) turns[i] = std::polar(1.0, sign * 2 * M_PI * double(i) / double(n));
    return turns;
}

void execute(const Plan& plan, const float* in, float* out, int sign) {
    const size_t n0 = plan.rank == 2 ? size_t(plan.n[0]) : 1, n1 = size_t(plan.n[plan.rank - 1]);
    auto turns1 = turns_of(n1, sign), turns0 = turns_of(n0, sign);
    std::vector<Complex> field(n0 * n1), line(std::max(n0, n1)), result(std::max(n0, n1));
    for (int b = 0; b < plan.batch; ++b) {
        for (size_t i = 0; i < n0 * n1; ++i) {
            const float* at = in + 2 * (size_t(b) * size_t(plan.idist) + i * size_t(plan.istride));
            field[i] = {at[0], at[1]};
        }
        for (size_t y = 0; y < n0; ++y) {
            transform(&field[y * n1], 1, result.data(), n1, turns1);
            std::copy(result.begin(), result.begin() + long(n1), field.begin() + long(y * n1));
        }
        for (size_t x = 0; n0 > 1 && x < n1; ++x) {
            for (size_t y = 0; y < n0; ++y) line[y] = field[y * n1 + x];
            transform(line.data(), 1, result.data(), n0, turns0);
            for (size_t y = 0; y < n0; ++y) field[y * n1 + x] = result[y];
        }
        for (size_t i = 0; i < n0 * n1; ++i) {
            float* at = out + 2 * (size_t(b) * size_t(plan.odist) + i * size_t(plan.ostride));
            at[0] = float(field[i].real());
            at[1] = float(field[i].imag());
        }
    }
}
}  // namespace

API int cufftPlanMany(int* handle, int rank, int* n, int* inembed, int istride, int idist, int* onembed, int ostride, int odist, int type, int batch) {
    Lock guard(lock);
    if (rank < 1 || rank > 2 || type != 0x29) return 4;
    Plan* plan = new Plan{};
    plan->rank = rank;
    int all = 1;
    for (int i = 0; i < rank; ++i) all *= plan->n[i] = n[i];
    // Without an embedding the layout is the dense one.
    plan->istride = inembed ? istride : 1;
    plan->idist = inembed ? idist : all;
    plan->ostride = onembed ? ostride : 1;
    plan->odist = onembed ? odist : all;
    plan->batch = batch;
    driver().plans.push_back(plan);
    *handle = int(driver().plans.size());
    return 0;
}
API int cufftDestroy(int handle) {
    Lock guard(lock);
    driver().drain_all();
    delete driver().plans.at(size_t(handle - 1));
    driver().plans[size_t(handle - 1)] = nullptr;
    return 0;
}
API int cufftSetStream(int handle, void* stream) {
    Lock guard(lock);
    driver().plans.at(size_t(handle - 1))->stream = driver().stream_of(stream);
    return 0;
}
API int cufftGetSize(int, size_t* bytes) { return *bytes = 0, 0; }
API int cufftGetVersion(int* version) { return *version = 11303, 0; }
API int cufftExecC2C(int handle, float* in, float* out, int sign) {
    Lock guard(lock);
    Driver& d = driver();
    if (d.status != SUCCESS) return 6;
    Plan* plan = d.plans.at(size_t(handle - 1));
    Plan copy = *plan;
    d.enqueue(copy.stream ? copy.stream : &d.none, [=] { execute(copy, in, out, sign); });
    return 0;
}

// ---- libnvidia-ml ----

API int nvmlInit_v2() { return 0; }
API int nvmlInitWithFlags(unsigned) { return 0; }
API int nvmlShutdown() { return 0; }
API const char* nvmlErrorString(int) { return "emulated"; }
API int nvmlDeviceGetHandleByUUID(const char*, void** device) { return *device = &driver(), 0; }
API int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) { return *celsius = driver().fault == "hot" ? 101 : 40, 0; }
API int nvmlDeviceGetTemperatureThreshold(void*, int, unsigned* celsius) { return *celsius = 95, 0; }
API int nvmlDeviceGetTotalEccErrors(void*, int, int, unsigned long long* count) { return *count = driver().fault == "ecc" ? 3 : 0, 0; }
