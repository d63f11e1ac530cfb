// Between an emulated kernel and the engine that runs it.
#pragma once
#include <cstddef>

namespace bp {

constexpr unsigned MAX_ARGUMENTS = 48;

struct Dim { unsigned x, y, z; };

// A thread of the running block.
struct Thread {
    Dim index;
    unsigned lane;
};

struct Engine {
    Thread* current;
    Dim block, block_dim, grid_dim;
    unsigned char* dynamic;
    // Waits for all threads of the block; `line` tells barriers apart.
    void (*barrier)(int line);
    // Waits for the lanes in `mask` and returns what each brought, by lane.
    void (*collective)(int line, unsigned mask, unsigned long long mine, unsigned long long* all);
    // Another thread may come in between here.
    void (*preempt)();
};

struct Kernel {
    const char* name;
    void (*call)(const unsigned char* packed);
    unsigned arguments;
    unsigned sizes[MAX_ARGUMENTS];
};

// What a compiled module exports as `bp_module`.
struct Module {
    const Kernel* kernels;
    unsigned count;
    unsigned char *shared_begin, *shared_end;
    Engine** engine;
};

}  // namespace bp
