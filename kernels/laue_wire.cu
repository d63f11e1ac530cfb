// Wire scans, whole: a thread a pixel. Twin: src/technique/laue/wire.rs, which has the geometry; names are the same. In f64.
//
// Neighbouring threads are neighbouring pixels, whose rays pass the wire alike: they read counts [frame, pixel] and add to depths
// [depth, pixel] side by side. A pixel's differences are deposited in the order of frames by one thread: nothing is added by
// two threads, so that the result is bitwise repeatable and intensity is conserved as the twin conserves it.
#include "common.h"

struct V2 {
    double x, y;
};

// Where a depth grid begins, width of a bin, bins.
struct Grid {
    double start, step;
    int bins;
};

// Depth, µm, of the ray from `point` past the wire at `centre`, on the side of `motion` (`ahead`) or the other; false: there is none.
DEVICE bool depth_of(V2 point, V2 centre, V2 motion, bool ahead, double radius, double foreshortening, double& depth) {
    const double vx = centre.x - point.x, vy = centre.y - point.y;
    const double square = vx * vx + vy * vy, tangent = square - radius * radius;
    if (!(tangent > 0.0)) return false;
    const double c = sqrt(tangent / square), s = radius / sqrt(square);
    const double fx = vx * c - vy * s, fy = vx * s + vy * c;
    const double leads = -fy * motion.x + fx * motion.y;
    if (leads == 0.0) return false;
    const bool forward = (leads > 0.0) == ahead;
    const double ux = forward ? fx : vx * c + vy * s, uy = forward ? fy : -vx * s + vy * c;
    depth = 1e3 * (point.y - point.x * uy / ux) / foreshortening;
    return fabs(depth) < 1.7976931348623157e308;
}

DEVICE void order(double& a, double& b) {
    if (b < a) {
        const double t = a;
        a = b;
        b = t;
    }
}

// Share of the trapezoid of four sorted depths that lies before `x`; a trapezoid without area is all at its first depth.
DEVICE double share_before(double x, const double* z, double area, bool point) {
    const double a = z[0], b = z[1], c = z[2], d = z[3];
    if (point) return x <= a ? 0.0 : 1.0;
    if (x <= a) return 0.0;
    if (x >= d) return 1.0;
    if (x < b) return (x - a) * (x - a) / (2.0 * (b - a)) / area;
    if (x <= c) return ((b - a) / 2.0 + x - b) / area;
    return 1.0 - (d - x) * (d - x) / (2.0 * (d - c)) / area;
}

DEVICE int bin_of(const Grid& grid, double depth) {
    const double at = floor((depth - grid.start) / grid.step);
    return static_cast<int>(fmin(fmax(at, 0.0), static_cast<double>(grid.bins - 1)));
}

// Adds `amount` to a pixel's column, whose bins are `pixels` apart; returns what fell outside the grid.
DEVICE double deposit(const Grid& grid, const double* z, double amount, double* column, unsigned pixels) {
    const double a = z[0], d = z[3], area = (d + z[2] - z[1] - a) / 2.0;
    const bool point = !(area > 1e-12 * (1.0 + fabs(a) + fabs(d)));
    const double high = point ? a : d, end = grid.start + static_cast<double>(grid.bins) * grid.step;
    if (high <= grid.start || a >= end) return amount;
    const int first = bin_of(grid, a), last = bin_of(grid, high);
    const double before = share_before(grid.start + first * grid.step, z, area, point);
    double done = before;
    for (int m = first; m <= last; ++m) {
        const double next = share_before(grid.start + (m + 1) * grid.step, z, area, point);
        column[static_cast<unsigned long long>(m) * pixels] += amount * (next - done);
        done = next;
    }
    return amount * (before + (1.0 - done));
}

// Step by step as `WireScan::resolve`. `edges` [4, pixel]: the two edges of a pixel across the wire, x and y; `centres` [frame, 2];
// `sides` 1: leading, 2: trailing, 3: both edges, half each. `columns` [depth, pixel] holds 0 before. Results: flags; maps
// [5, pixel]: mean, intensity, depth, residual, confidence; accounts [4, pixel]: input, deposited, out of range, rejected;
// `stack` [depth, pixel]. Grid over pixels.
KERNEL void wire_resolve(const float* __restrict__ counts, const double* __restrict__ edges, const double* __restrict__ centres,
                         double* columns, float* __restrict__ stack, float* __restrict__ maps, double* __restrict__ accounts,
                         unsigned char* __restrict__ flags, unsigned frames, unsigned known, unsigned pixels, double radius,
                         double foreshortening, int sides, double threshold, double saturation, double start, double bin_um,
                         int bins, int around) {
    const unsigned long long pixel = GLOBAL_INDEX;
    if (pixel >= pixels) return;
    const float* series = counts + pixel;
    const float nan = __int_as_float(0x7fc00000);
    double sum = 0.0;
    bool saturated = false, constant = true;
    const float head = series[0];
    for (unsigned k = 0; k < frames; ++k) {
        const float v = series[static_cast<unsigned long long>(k) * pixels];
        sum += static_cast<double>(v);
        saturated = saturated || static_cast<double>(v) >= saturation;
        constant = constant && v == head;
    }
    const double mean = sum / static_cast<double>(frames);
    const unsigned bits = (mean >= threshold ? 0u : 1u) | (saturated ? 2u : 0u) | (constant ? 4u : 0u);
    flags[pixel] = static_cast<unsigned char>(bits);
    maps[pixel] = static_cast<float>(mean);
    for (unsigned m = 1; m < 5; ++m) maps[static_cast<unsigned long long>(m) * pixels + pixel] = nan;
    for (unsigned m = 0; m < 4; ++m) accounts[static_cast<unsigned long long>(m) * pixels + pixel] = 0.0;
    if (bits != 0) return;
    const V2 near_edge = {edges[pixel], edges[pixels + pixel]};
    const V2 far_edge = {edges[2ull * pixels + pixel], edges[3ull * pixels + pixel]};
    const Grid grid = {start, bin_um, bins};
    double* column = columns + pixel;
    const double weight = sides == 3 ? 0.5 : 1.0;
    double input = 0.0, deposited = 0.0, out = 0.0, rejected = 0.0, variance = 0.0;
    float next = head;
    for (unsigned k = 0; k + 1 < known; ++k) {
        const float now = next;
        next = series[static_cast<unsigned long long>(k + 1) * pixels];
        const double difference = static_cast<double>(now) - static_cast<double>(next);
        if (difference == 0.0) continue;
        const V2 a = {centres[2 * k], centres[2 * k + 1]}, b = {centres[2 * k + 2], centres[2 * k + 3]};
        const V2 motion = {b.x - a.x, b.y - a.y};
        for (int side = 1; side <= 2; ++side) {
            if (!(sides & side)) continue;
            const bool ahead = side == 1;
            const double amount = (ahead ? weight : -weight) * difference;
            input += amount;
            double z[4];
            const bool seen = depth_of(near_edge, a, motion, ahead, radius, foreshortening, z[0]) &&
                              depth_of(near_edge, b, motion, ahead, radius, foreshortening, z[1]) &&
                              depth_of(far_edge, a, motion, ahead, radius, foreshortening, z[2]) &&
                              depth_of(far_edge, b, motion, ahead, radius, foreshortening, z[3]);
            if (!seen) {
                rejected += amount;
                continue;
            }
            order(z[0], z[1]);
            order(z[2], z[3]);
            order(z[0], z[2]);
            order(z[1], z[3]);
            order(z[1], z[2]);
            const double beyond = deposit(grid, z, amount, column, pixels);
            out += beyond;
            deposited += amount - beyond;
            if (beyond != amount) variance += weight * weight * (static_cast<double>(now) + static_cast<double>(next));
        }
    }
    // The last of equally full bins, as the twin takes it.
    int peak = 0;
    double fullest = column[0], negative = 0.0, all = 0.0;
    for (int m = 0; m < bins; ++m) {
        const double v = column[static_cast<unsigned long long>(m) * pixels];
        if (v >= fullest) {
            fullest = v;
            peak = m;
        }
        negative += fmax(-v, 0.0);
        all += fabs(v);
        stack[static_cast<unsigned long long>(m) * pixels + pixel] = static_cast<float>(v);
    }
    double moment = 0.0, mass = 0.0;
    for (int m = max(peak - around, 0); m <= min(peak + around, bins - 1); ++m) {
        const double v = fmax(column[static_cast<unsigned long long>(m) * pixels], 0.0);
        moment += v * (start + (m + 0.5) * bin_um);
        mass += v;
    }
    maps[pixels + pixel] = static_cast<float>(deposited);
    maps[2ull * pixels + pixel] = static_cast<float>(moment / mass);
    maps[3ull * pixels + pixel] = static_cast<float>(negative / all);
    maps[4ull * pixels + pixel] = static_cast<float>(fullest / sqrt(variance / static_cast<double>(bins)));
    accounts[pixel] = input;
    accounts[pixels + pixel] = deposited;
    accounts[2ull * pixels + pixel] = out;
    accounts[3ull * pixels + pixel] = rejected;
}
