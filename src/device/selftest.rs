//! Is this device fit for work? Asked once, before an executor takes any.
//!
//! A known kernel (arithmetic, shuffles, shared memory, a barrier, atomics: one right answer), an exact chain of fused
//! operations, a pattern of the address and its complement through a stretch of memory, a transform whose result is known,
//! and what NVML says of heat and memory errors. Any doubt is [`DeviceError::Unfit`].

use super::error::DeviceError;
use super::fft::{Direction, Layout};
use super::gpu::{Arg, Gpu, Shape, Stream};
use super::health::{self, Health};
use super::kernels::{File, Program};

/// Most memory that is tested, bytes; 1/16 of what is free if that is less.
const MEMORY: u64 = 1 << 30;
const COUNT: u32 = 100_003;

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Bytes of memory tested.
    pub tested: u64,
    /// From NVML.
    pub health: Health,
}

/// Runs the test on a bound device.
///
/// # Errors
/// [`DeviceError::Unfit`], or anything the driver says.
pub fn run(gpu: &Gpu) -> Result<Report, DeviceError> {
    let health = health::read(&gpu.uuid()?);
    if let Some(complaint) = health.complaint() {
        return Err(DeviceError::Unfit(complaint));
    }
    let stream = gpu.stream()?;
    let program = Program::of(File::Selftest);
    let out = gpu.alloc(4 * 4096)?;
    let mut host = gpu.pinned(4 * 4096)?;

    stream.zero(&out, 4)?;
    stream.launch(gpu.function(&program, "selftest_sum")?, Shape::line(7, 256), &[Arg::from(&out), COUNT.into()])?;
    stream.download::<u32>(&out, &mut host, 1)?;
    stream.synchronize()?;
    let want = (0..COUNT).fold(0_u32, |sum, v| sum.wrapping_add(hash(v)));
    let got = host.as_ref::<u32>(1)[0];
    if got != want {
        return Err(DeviceError::Unfit(format!("a sum over {COUNT} numbers gave {got:#010x} instead of {want:#010x}")));
    }

    const ROUNDS: i32 = 64;
    let chain = [Arg::from(&out), 4096_u32.into(), ROUNDS.into()];
    stream.launch(gpu.function(&program, "selftest_chain")?, Shape::line(4, 128), &chain)?;
    stream.download::<f32>(&out, &mut host, 4096)?;
    stream.synchronize()?;
    for (i, &got) in host.as_ref::<f32>(4096).iter().enumerate() {
        let want = i as f32 / 1024.0 + ROUNDS as f32;
        if got != want {
            return Err(DeviceError::Unfit(format!("an exact chain of multiply-adds gave {got} instead of {want}")));
        }
    }
    transform(gpu, &stream)?;
    let tested = memory(gpu, &stream, &program)?;
    Ok(Report { tested, health })
}

fn hash(v: u32) -> u32 {
    let v = (v ^ v >> 16).wrapping_mul(0x7feb_352d);
    let v = (v ^ v >> 15).wrapping_mul(0x846c_a68b);
    v ^ v >> 16
}

fn memory(gpu: &Gpu, stream: &Stream, program: &Program) -> Result<u64, DeviceError> {
    let words = (gpu.memory()?.0 / 16).min(MEMORY) / 4;
    let memory = gpu.alloc(4 * words as usize)?;
    let wrong = gpu.alloc(4)?;
    let mut host = gpu.pinned(4)?;
    let blocks = (words as usize).div_ceil(256 * 16).clamp(1, 4096);
    stream.zero(&wrong, 4)?;
    for flip in [0_u32, u32::MAX] {
        let shape = Shape::line(blocks, 256);
        let fill = gpu.function(program, "selftest_fill")?;
        stream.launch(fill, shape, &[Arg::from(&memory), words.into(), flip.into()])?;
        let check = gpu.function(program, "selftest_check")?;
        stream.launch(check, shape, &[Arg::from(&memory), words.into(), flip.into(), Arg::from(&wrong)])?;
    }
    stream.download::<u32>(&wrong, &mut host, 1)?;
    stream.synchronize()?;
    match host.as_ref::<u32>(1)[0] {
        0 => Ok(4 * words),
        wrong => Err(DeviceError::Unfit(format!("{wrong} words of {words} did not keep what was written"))),
    }
}

/// One cycle of a wave has one frequency.
fn transform(gpu: &Gpu, stream: &Stream) -> Result<(), DeviceError> {
    const N: usize = 360;
    let buffer = gpu.alloc(8 * N)?;
    let mut host = gpu.pinned(8 * N)?;
    for (j, cell) in host.as_mut::<f32>(2 * N).chunks_exact_mut(2).enumerate() {
        let (sin, cos) = (std::f64::consts::TAU * j as f64 / N as f64).sin_cos();
        cell.copy_from_slice(&[cos as f32, sin as f32]);
    }
    stream.upload::<f32>(&host, 2 * N, &buffer)?;
    gpu.transform(stream, Layout::lines(N, 1), buffer.address(0), buffer.address(0), Direction::Forward)?;
    stream.download::<f32>(&buffer, &mut host, 2 * N)?;
    stream.synchronize()?;
    for (k, cell) in host.as_ref::<f32>(2 * N).chunks_exact(2).enumerate() {
        let want = if k == 1 { N as f32 } else { 0.0 };
        // Rounding of the inputs and of nine stages: 1e-6 of the whole is ten times as much.
        if !((cell[0] - want).abs() < 1e-6 * N as f32 && cell[1].abs() < 1e-6 * N as f32) {
            return Err(DeviceError::Unfit(format!("a Fourier transform gave {cell:?} at {k}")));
        }
    }
    Ok(())
}
