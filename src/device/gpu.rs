//! One GPU: its context, memory, streams, events and kernels.
//!
//! Contract
//! - Everything here is asynchronous unless it says otherwise, and ordered by streams and events alone.
//! - Memory, streams and events belong to the context they were made in and are freed with the last handle. A buffer's
//!   bytes may be in use by queued work when it is dropped: the driver waits for that work.
//! - [`Gpu::bind`] makes the context the calling thread's; call it first on every thread.
//! - Copies go through [`Pinned`] memory only, because copies from other memory neither overlap nor return at once. Whoever
//!   reads or rewrites pinned memory waits for the event behind its copy.

use super::compile::Cache;
use super::cuda;
use super::error::DeviceError;
use super::fft::Plans;
use super::kernels::Program;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: a context handle may be used from any thread; the driver locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `Gpu::open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A GPU in use.
pub struct Gpu {
    context: Arc<Context>,
    /// What it is.
    pub info: cuda::Gpu,
    arch: String,
    cache: Cache,
    modules: Mutex<HashMap<Program, Module>>,
    plans: Mutex<Plans>,
}

struct Module {
    raw: sys::CUmodule,
    functions: HashMap<&'static str, Function>,
}

// SAFETY: handles of the driver, usable from any thread.
unsafe impl Send for Module {}

/// A kernel.
#[derive(Clone, Copy)]
pub struct Function {
    raw: sys::CUfunction,
    name: &'static str,
}

// SAFETY: as for `Module`; modules are never unloaded while their `Gpu` lives.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// An argument of a kernel, as its bytes. The kernel's signature is the only type check: integers of four and eight bytes and
/// pointers may be given as any of them, floats must be what they are.
#[derive(Debug, Clone, Copy)]
pub struct Arg(u64);

macro_rules! arg {
    ($($type:ty => $bits:expr),*) => { $(impl From<$type> for Arg {
        fn from(v: $type) -> Self {
            #[allow(clippy::redundant_closure_call)]
            Self($bits(v))
        }
    })* };
}
arg!(u32 => u64::from, u64 => |v| v, i32 => |v: i32| u64::from(v as u32), usize => |v| v as u64,
     f32 => |v: f32| u64::from(v.to_bits()), f64 => f64::to_bits, &Buffer => |b: &Buffer| b.address(0));

/// Blocks and threads of a launch, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks along x, y, z.
    pub grid: [usize; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

impl Shape {
    /// `blocks` blocks of `threads` threads.
    #[must_use]
    pub fn line(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 }
    }

    /// Enough blocks of `threads` for `width` items, `height` and `depth` times.
    #[must_use]
    pub fn over(width: usize, height: usize, depth: usize, threads: u32) -> Self {
        Self { grid: [width.div_ceil(threads as usize), height, depth], block: [threads, 1, 1], shared: 0 }
    }

    /// Blocks of 32 × 8 threads over a picture.
    #[must_use]
    pub fn tiles(width: usize, height: usize) -> Self {
        Self { grid: [width.div_ceil(32), height.div_ceil(8), 1], block: [32, 8, 1], shared: 0 }
    }

    /// With dynamic shared memory.
    #[must_use]
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }
}

impl Gpu {
    /// Opens a device: retains its context and makes it this thread's.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn open(info: cuda::Gpu, cache: Cache) -> Result<Self, DeviceError> {
        let device = result::device::get(info.ordinal as i32).map_err(DeviceError::at("cuDeviceGet"))?;
        // SAFETY: the driver just returned this device.
        let raw =
            unsafe { result::primary_ctx::retain(device) }.map_err(DeviceError::at("cuDevicePrimaryCtxRetain"))?;
        let arch = format!("sm_{}{}", info.capability.0, info.capability.1);
        let this = Self {
            context: Arc::new(Context { raw, device }),
            info,
            arch,
            cache,
            modules: Mutex::default(),
            plans: Mutex::default(),
        };
        this.bind()?;
        Ok(this)
    }

    /// Tells it from every other device that this process opened.
    #[must_use]
    pub fn id(&self) -> u64 {
        Arc::as_ptr(&self.context) as u64
    }

    /// Makes the context the calling thread's.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is alive.
        unsafe { result::ctx::set_current(self.context.raw) }.map_err(DeviceError::at("cuCtxSetCurrent"))
    }

    /// Architecture that kernels are compiled for, as `sm_90`.
    #[must_use]
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Its name for the driver's tools: `GPU-` and a UUID.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn uuid(&self) -> Result<String, DeviceError> {
        let id = result::device::get_uuid(self.context.device).map_err(DeviceError::at("cuDeviceGetUuid"))?;
        let hex: String = id.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
        Ok(format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
    }

    /// An attribute of the device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn attribute(&self, which: sys::CUdevice_attribute) -> Result<i32, DeviceError> {
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(self.context.device, which) }
            .map_err(DeviceError::at("cuDeviceGetAttribute"))
    }

    /// Bytes free and in all.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let (free, total) = result::mem_get_info().map_err(DeviceError::at("cuMemGetInfo"))?;
        Ok((free as u64, total as u64))
    }

    /// Memory on the device, not initialised.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or the driver refuses.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, DeviceError> {
        let bytes = bytes.max(16);
        // SAFETY: the context is this thread's by contract; the memory is freed once, by `Buffer`.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Buffer { address, bytes, _context: Arc::clone(&self.context) }),
            Err(e) => Err(match DeviceError::at("cuMemAlloc")(e) {
                DeviceError::OutOfMemory { .. } => {
                    DeviceError::OutOfMemory { wanted: bytes as u64, free: self.memory().map_or(0, |m| m.0) }
                }
                other => other,
            }),
        }
    }

    /// Pinned memory of the host.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when the host has none to pin, or the driver refuses.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        let bytes = bytes.max(16);
        // SAFETY: freed once, by `Pinned`.
        let raw = unsafe { result::malloc_host(bytes, 0) }.map_err(DeviceError::at("cuMemHostAlloc"))?;
        let start = NonNull::new(raw.cast::<u8>()).ok_or(DeviceError::OutOfMemory { wanted: bytes as u64, free: 0 })?;
        // SAFETY: just allocated with that many bytes. Slices of it need initialised memory.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, _context: Arc::clone(&self.context) })
    }

    /// A stream that does not wait for the default stream.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn stream(&self) -> Result<Stream, DeviceError> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(DeviceError::at("cuStreamCreate"))?;
        Ok(Stream { raw, _context: Arc::clone(&self.context) })
    }

    /// An event.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn event(&self) -> Result<Event, DeviceError> {
        let raw =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(DeviceError::at("cuEventCreate"))?;
        Ok(Event { raw, _context: Arc::clone(&self.context) })
    }

    /// A kernel of a program: compiled (or found compiled) and loaded the first time.
    ///
    /// # Errors
    /// It cannot be compiled or loaded, or has no such kernel.
    pub fn function(&self, program: &Program, name: &'static str) -> Result<Function, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if !modules.contains_key(program) {
            let image = self.cache.image(program, &self.arch)?;
            // SAFETY: the image is whole (its hash was checked, or it was just made) and ends with a zero byte.
            let raw = unsafe { result::module::load_data(image.as_ptr().cast()) }
                .map_err(DeviceError::at("cuModuleLoadData"))?;
            modules.insert(program.clone(), Module { raw, functions: HashMap::new() });
        }
        let Some(module) = modules.get_mut(program) else { unreachable!("it was inserted above") };
        if let Some(function) = module.functions.get(name) {
            return Ok(*function);
        }
        let symbol = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded.
        let raw = unsafe { result::module::get_function(module.raw, symbol) }
            .map_err(DeviceError::at("cuModuleGetFunction"))?;
        let function = Function { raw, name };
        module.functions.insert(name, function);
        Ok(function)
    }

    /// Plans of Fourier transforms.
    pub(super) fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for everything.
    ///
    /// # Errors
    /// What went wrong since the last time, or the driver refuses.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        result::ctx::synchronize().map_err(DeviceError::at("cuCtxSynchronize"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            self.plans().clear();
            for module in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
                // SAFETY: loaded once; the functions of it die with this.
                let _ = unsafe { result::module::unload(module.raw) };
            }
        }
    }
}

/// Memory on the device.
pub struct Buffer {
    address: sys::CUdeviceptr,
    bytes: usize,
    _context: Arc<Context>,
}

impl Buffer {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address `offset` bytes in.
    ///
    /// # Panics
    /// Never; an offset beyond the end is our own mistake and stops debug builds.
    #[must_use]
    pub fn address(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes, "offset {offset} in a buffer of {} bytes", self.bytes);
        self.address + offset as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated once in `Gpu::alloc`; the driver waits for work that uses it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Pinned memory of the host.
pub struct Pinned {
    start: NonNull<u8>,
    bytes: usize,
    _context: Arc<Context>,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The first `count` elements.
    ///
    /// # Panics
    /// When it is shorter: our own mistake.
    pub fn as_mut<T: Plain>(&mut self, count: usize) -> &mut [T] {
        assert!(count.checked_mul(size_of::<T>()).is_some_and(|b| b <= self.bytes), "pinned memory is too short");
        // SAFETY: long enough, initialised, page-aligned, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), count) }
    }

    /// The first `count` elements.
    ///
    /// # Panics
    /// When it is shorter: our own mistake.
    #[must_use]
    pub fn as_ref<T: Plain>(&self, count: usize) -> &[T] {
        assert!(count.checked_mul(size_of::<T>()).is_some_and(|b| b <= self.bytes), "pinned memory is too short");
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once in `Gpu::pinned`; the driver waits for copies that use it.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}

/// Types of which any bits are a value.
///
/// # Safety
/// No padding, no invalid bit patterns.
pub unsafe trait Plain: Copy + Send + Sync {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for i32 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}

/// An event: a point in a stream.
pub struct Event {
    raw: sys::CUevent,
    _context: Arc<Context>,
}

// SAFETY: handles of the driver, usable from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Waits until it has happened; at once when it was never recorded.
    ///
    /// # Errors
    /// What went wrong before it.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: alive.
        unsafe { result::event::synchronize(self.raw) }.map_err(DeviceError::at("cuEventSynchronize"))
    }

    /// Seconds from `start` to this one; both must have happened.
    ///
    /// # Errors
    /// They have not.
    pub fn since(&self, start: &Event) -> Result<f64, DeviceError> {
        // SAFETY: both alive.
        let ms = unsafe { result::event::elapsed(start.raw, self.raw) };
        ms.map(|ms| f64::from(ms) / 1e3).map_err(DeviceError::at("cuEventElapsedTime"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

/// A queue of work.
pub struct Stream {
    raw: sys::CUstream,
    _context: Arc<Context>,
}

// SAFETY: handles of the driver, usable from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Marks this point.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self, event: &Event) -> Result<(), DeviceError> {
        // SAFETY: both alive.
        unsafe { result::event::record(event.raw, self.raw) }.map_err(DeviceError::at("cuEventRecord"))
    }

    /// What comes now waits for `event` as it was last recorded.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both alive.
        unsafe { result::stream::wait_event(self.raw, event.raw, flags) }.map_err(DeviceError::at("cuStreamWaitEvent"))
    }

    /// Waits until the stream is empty.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: alive.
        unsafe { result::stream::synchronize(self.raw) }.map_err(DeviceError::at("cuStreamSynchronize"))
    }

    /// Copies the first `count` elements of pinned memory to the device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn upload<T: Plain>(&self, from: &Pinned, count: usize, to: &Buffer) -> Result<(), DeviceError> {
        let from = from.as_ref::<T>(count);
        debug_assert!(size_of_val(from) <= to.bytes);
        // SAFETY: the buffer is long enough; both live until the event behind the copy, by this module's contract.
        unsafe { result::memcpy_htod_async(to.address, from, self.raw) }.map_err(DeviceError::at("cuMemcpyHtoDAsync"))
    }

    /// Copies elements `range` of pinned memory to the same place on the device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn upload_part<T: Plain>(&self, from: &Pinned, range: Range<usize>, to: &Buffer) -> Result<(), DeviceError> {
        let from = &from.as_ref::<T>(range.end)[range.start..];
        let address = to.address(range.start * size_of::<T>());
        debug_assert!(range.end * size_of::<T>() <= to.bytes);
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_htod_async(address, from, self.raw) }.map_err(DeviceError::at("cuMemcpyHtoDAsync"))
    }

    /// Copies the first `count` elements of device memory to pinned memory.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn download<T: Plain>(&self, from: &Buffer, to: &mut Pinned, count: usize) -> Result<(), DeviceError> {
        let to = to.as_mut::<T>(count);
        debug_assert!(size_of_val(to) <= from.bytes);
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(to, from.address, self.raw) }.map_err(DeviceError::at("cuMemcpyDtoHAsync"))
    }

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn zero(&self, buffer: &Buffer, bytes: usize) -> Result<(), DeviceError> {
        debug_assert!(bytes <= buffer.bytes);
        // SAFETY: the buffer is long enough.
        let done = unsafe { result::memset_d8_async(buffer.address, 0, bytes, self.raw) };
        done.map_err(DeviceError::at("cuMemsetD8Async"))
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// A launch that cannot be.
    pub fn launch(&self, function: Function, shape: Shape, arguments: &[Arg]) -> Result<(), DeviceError> {
        // Beyond 48 KiB a kernel has to be told that it may.
        if shape.shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(function.raw, attribute, shape.shared as i32) }
                .map_err(DeviceError::at("cuFuncSetAttribute"))?;
        }
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|a| std::ptr::from_ref(&a.0).cast_mut().cast()).collect();
        let grid = shape.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        // SAFETY: the driver copies the arguments before it returns; that they fit the kernel is the caller's word, which
        // the tests of every kernel keep.
        unsafe {
            result::launch_kernel(
                function.raw,
                grid.into(),
                shape.block.into(),
                shape.shared as u32,
                self.raw,
                &mut pointers,
            )
        }
        .map_err(DeviceError::at(function.name))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}
