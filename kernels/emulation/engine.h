// Runs the blocks of a kernel on the host, threads as fibres on stacks of their own.
//
// Faithful in what a kernel may rely on and faithless in everything else: blocks run in shuffled order; of the threads
// that can go on, any goes next and runs until it waits at a barrier, a warp collective, or (now and then) an atomic; a
// warp may get far ahead of others;
// shared memory starts as rubbish. A kernel that forgets a barrier therefore reads what is not there yet, and one that
// relies on the order of a warp finds it shuffled. Reported as errors: a barrier that only some threads reach, two
// barriers waited at together, a warp collective with lanes that never come, or without the caller in its mask.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "interface.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace bp {

// xorshift64*: repeatable everywhere.
struct Random {
    uint64_t state = 0x9e3779b97f4a7c15ull;
    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545f4914f6cdd1dull;
    }
    uint64_t below(uint64_t n) { return n ? (next() >> 11) % n : 0; }
};

#if defined(__x86_64__)
extern "C" void bp_switch(void** save, void* to);
asm(R"(
.text
.globl bp_switch
.hidden bp_switch
.type bp_switch,@function
bp_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size bp_switch,.-bp_switch
)");
#endif

struct Fibre : Thread {
    enum State { Ready, AtBarrier, AtWarp, Done } state;
    int line;
    unsigned mask;
    unsigned long long value;
    unsigned warp;
#if defined(__x86_64__)
    void* sp;
#else
    ucontext_t context;
#endif
};

class Runner {
  public:
    static constexpr size_t STACK = 128 * 1024, MOST_THREADS = 1024;
    static constexpr size_t MOST_SHARED = 163 * 1024;  // of a block on sm_80

    Engine engine{};
    Random random;
    std::string error, kernel_name;
    // For tests: kernels of these names, with blanks around each, pass the barrier of this line as if it were not there.
    std::string careless;
    int careless_line = 0;

    Runner() {
        self = this;
        void* at = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = at == MAP_FAILED ? nullptr : static_cast<unsigned char*>(at);
        dynamic.resize(MOST_SHARED + 64);
        engine.dynamic = dynamic.data() + (64 - reinterpret_cast<uintptr_t>(dynamic.data()) % 64) % 64;
        engine.barrier = [](int line) {
            if (!self->passes(line)) self->wait(Fibre::AtBarrier, line);
        };
        engine.preempt = [] { if (self->random.below(8) == 0) self->wait(Fibre::Ready, 0); };
        engine.collective = [](int line, unsigned mask, unsigned long long mine, unsigned long long* all) {
            if (all || !self->passes(line)) self->collective(line, mask, mine, all);
        };
    }

    // False, with `error` set, when the kernel breaks a rule.
    bool run(const Module& module, const Kernel& kernel, Dim grid, Dim block, unsigned shared, const unsigned char* packed) {
        const size_t count = size_t(block.x) * block.y * block.z;
        kernel_name = kernel.name;
        engine.grid_dim = grid;
        engine.block_dim = block;
        *module.engine = &engine;
        call = kernel.call;
        arguments = packed;
        fibres.resize(count);
        const size_t blocks = size_t(grid.x) * grid.y * grid.z;
        std::vector<uint32_t> order(blocks);
        for (size_t i = 0; i < blocks; ++i) order[i] = uint32_t(i);
        for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
        for (uint32_t b : order) {
            engine.block = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
            rubbish(module.shared_begin, size_t(module.shared_end - module.shared_begin));
            rubbish(engine.dynamic, shared);
            if (!run_block(block)) return false;
        }
        return true;
    }

    static void rubbish(unsigned char* at, size_t bytes) {
        // NaN as a float, −1 as an integer in most places, and not the same everywhere.
        for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<unsigned char>(0xff - (self->random.state >> (i & 7) & (i % 4 == 0)));
    }

  private:
    bool passes(int line) const { return line == careless_line && careless.find(" " + kernel_name + " ") != std::string::npos; }

    static Runner* self;
    unsigned char* stacks;
    std::vector<unsigned char> dynamic;
    std::vector<Fibre> fibres;
    std::vector<uint32_t> ready;
    void (*call)(const unsigned char*) = nullptr;
    const unsigned char* arguments = nullptr;
    Fibre* running = nullptr;
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif

    static void entry() {
        self->call(self->arguments);
        self->wait(Fibre::Done, 0);
        __builtin_unreachable();
    }

    void prepare(size_t i) {
        Fibre& f = fibres[i];
#if defined(__x86_64__)
        uintptr_t top = reinterpret_cast<uintptr_t>(stacks + (i + 1) * STACK) - 64;
        void** sp = reinterpret_cast<void**>(top);
        *--sp = nullptr;                             // alignment: a function begins with rsp % 16 = 8
        *--sp = reinterpret_cast<void*>(&entry);
        for (int r = 0; r < 6; ++r) *--sp = nullptr;
        f.sp = sp;
#else
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks + i * STACK;
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, &entry, 0);
#endif
    }

    void resume(Fibre& f) {
        running = &f;
        engine.current = &f;
#if defined(__x86_64__)
        bp_switch(&scheduler, f.sp);
#else
        swapcontext(&scheduler, &f.context);
#endif
    }

    void wait(Fibre::State state, int line) {
        running->state = state;
        running->line = line;
#if defined(__x86_64__)
        bp_switch(&running->sp, scheduler);
#else
        swapcontext(&running->context, &scheduler);
#endif
    }

    void collective(int line, unsigned mask, unsigned long long mine, unsigned long long* all) {
        Fibre* f = running;
        f->mask = mask;
        f->value = mine;
        wait(Fibre::AtWarp, line);
        // Released: nobody of this warp has gone on to another collective, for that waits for this lane.
        if (all) {
            for (unsigned l = 0; l < 32; ++l) {
                size_t other = size_t(f->warp) * 32 + l;
                all[l] = other < fibres.size() ? results[other] : 0;
            }
        }
    }
    std::vector<unsigned long long> results;

    bool fail(const std::string& text) {
        error = "kernel " + kernel_name + ", block (" + std::to_string(engine.block.x) + ", " + std::to_string(engine.block.y) + ", " +
                std::to_string(engine.block.z) + "): " + text;
        return false;
    }

    bool run_block(Dim block) {
        const size_t count = fibres.size();
        results.assign(count, 0);
        for (size_t i = 0; i < count; ++i) {
            Fibre& f = fibres[i];
            f.index = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / (size_t(block.x) * block.y))};
            f.lane = unsigned(i % 32);
            f.warp = unsigned(i / 32);
            f.state = Fibre::Ready;
            prepare(i);
        }
        for (;;) {
            ready.clear();
            for (size_t i = 0; i < count; ++i)
                if (fibres[i].state == Fibre::Ready) ready.push_back(uint32_t(i));
            if (ready.empty()) {
                bool any = false;
                if (!release_warps(any)) return false;
                if (any) continue;
                int end = release_block();
                if (end <= 0) return end == 0;
                continue;
            }
            for (size_t i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[random.below(i)]);
            // Now and then one warp goes on alone until it waits for others, as far ahead of them as barriers let it.
            if (random.below(4) == 0) {
                if (!run_ahead(fibres[ready[0]].warp)) return false;
                continue;
            }
            for (uint32_t i : ready) resume(fibres[i]);
        }
    }

    bool run_ahead(unsigned warp) {
        const size_t first = size_t(warp) * 32, last = first + 32 < fibres.size() ? first + 32 : fibres.size();
        for (;;) {
            ready.clear();
            for (size_t i = first; i < last; ++i)
                if (fibres[i].state == Fibre::Ready) ready.push_back(uint32_t(i));
            if (ready.empty()) {
                bool any = false;
                if (!release_warps(any)) return false;
                if (!any) return true;
                bool mine = false;
                for (size_t i = first; i < last; ++i) mine = mine || fibres[i].state == Fibre::Ready;
                if (!mine) return true;
                continue;
            }
            for (size_t i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[random.below(i)]);
            for (uint32_t i : ready) resume(fibres[i]);
        }
    }

    // Lets go every group of lanes that is complete.
    bool release_warps(bool& any) {
        const size_t count = fibres.size();
        for (size_t first = 0; first < count; first += 32) {
            const size_t last = first + 32 < count ? first + 32 : count;
            for (size_t i = first; i < last; ++i) {
                Fibre& f = fibres[i];
                if (f.state != Fibre::AtWarp) continue;
                unsigned mask = last - first == 32 ? f.mask : f.mask & ((1u << (last - first)) - 1u);
                if (!(f.mask >> f.lane & 1u)) return fail("line " + std::to_string(f.line) + ": a lane is not in the mask it passes");
                bool all = true;
                for (size_t l = first; l < last; ++l) {
                    Fibre& other = fibres[l];
                    if (!(mask >> (l - first) & 1u)) continue;
                    if (other.state == Fibre::Done) return fail("line " + std::to_string(f.line) + ": waits for a lane that has ended");
                    all = all && other.state == Fibre::AtWarp && other.line == f.line && other.mask == f.mask;
                }
                if (!all) continue;
                for (size_t l = first; l < last; ++l) {
                    if (!(mask >> (l - first) & 1u)) continue;
                    results[l] = fibres[l].value;
                    fibres[l].state = Fibre::Ready;
                }
                any = true;
            }
        }
        return true;
    }

    // 1: the barrier opened; 0: all threads ended; −1: error.
    int release_block() {
        size_t waiting = 0, done = 0;
        int line = -1;
        for (Fibre& f : fibres) {
            if (f.state == Fibre::Done) {
                ++done;
            } else if (f.state == Fibre::AtWarp) {
                fail("line " + std::to_string(f.line) + ": a warp collective that not all lanes of its mask reach");
                return -1;
            } else {
                if (line >= 0 && f.line != line) {
                    fail("threads wait at two barriers, lines " + std::to_string(line) + " and " + std::to_string(f.line));
                    return -1;
                }
                line = f.line;
                ++waiting;
            }
        }
        if (waiting == 0) return 0;
        if (done) {
            fail("line " + std::to_string(line) + ": " + std::to_string(done) + " threads ended before the barrier at which others wait");
            return -1;
        }
        for (Fibre& f : fibres) f.state = Fibre::Ready;
        return 1;
    }
};

inline Runner* Runner::self = nullptr;

}  // namespace bp
