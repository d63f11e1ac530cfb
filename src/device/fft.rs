//! Fourier transforms on the device by cuFFT, planned once: complex to complex, single precision, unnormalised; forward
//! `Σ x_j e^{−2πi jk/n}`, inverse `+`.

use super::error::DeviceError;
use super::gpu::{Gpu, Stream};
use cudarc::cufft::{result, sys};

/// Plans kept; a plan may hold work memory on the device.
const KEPT: usize = 6;

/// Direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `−` in the exponent.
    Forward,
    /// `+` in the exponent.
    Inverse,
}

/// What is transformed: `batch` signals, or pictures of `[height, width]`, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// 1 for signals.
    pub height: usize,
    /// Elements of a signal or of a picture's row.
    pub width: usize,
    /// How many.
    pub batch: usize,
    /// Elements between one and the next of a result.
    pub stride: usize,
}

impl Layout {
    /// Signals.
    #[must_use]
    pub fn lines(width: usize, batch: usize) -> Self {
        Self { height: 1, width, batch, stride: 1 }
    }

    /// Square pictures.
    #[must_use]
    pub fn squares(edge: usize, batch: usize) -> Self {
        Self { height: edge, width: edge, batch, stride: 1 }
    }

    fn plan(&self) -> Result<sys::cufftHandle, DeviceError> {
        let too_large = || DeviceError::Unsupported(format!("cuFFT takes no transform of this size: {self:?}"));
        let int = |n: usize| i32::try_from(n).map_err(|_| too_large());
        let whole = self.height.checked_mul(self.width).ok_or_else(too_large)?;
        let mut shape = [int(self.height)?, int(self.width)?];
        let rank = if self.height == 1 { 1 } else { 2 };
        let start = shape.len() - rank;
        let mut embed = shape;
        let (stride, distance) = (int(self.stride)?, int(whole.checked_mul(self.stride).ok_or_else(too_large)?)?);
        let embed = embed[start..].as_mut_ptr();
        // SAFETY: the arrays live through the call and have `rank` elements.
        unsafe {
            result::plan_many(
                rank as i32,
                shape[start..].as_mut_ptr(),
                embed,
                1,
                int(whole)?,
                embed,
                stride,
                distance,
                sys::cufftType::CUFFT_C2C,
                int(self.batch)?,
            )
        }
        .map_err(DeviceError::at_fft("cufftPlanMany"))
    }
}

/// The plans of a device, the last used first.
#[derive(Default)]
pub(super) struct Plans(Vec<(Layout, sys::cufftHandle)>);

impl Plans {
    fn get(&mut self, layout: Layout) -> Result<sys::cufftHandle, DeviceError> {
        if let Some(at) = self.0.iter().position(|(known, _)| *known == layout) {
            let found = self.0.remove(at);
            self.0.insert(0, found);
            return Ok(found.1);
        }
        while self.0.len() >= KEPT {
            self.drop_last();
        }
        let plan = layout.plan()?;
        self.0.insert(0, (layout, plan));
        Ok(plan)
    }

    fn drop_last(&mut self) {
        if let Some((_, plan)) = self.0.pop() {
            // SAFETY: made once, and forgotten here.
            let _ = unsafe { result::destroy(plan) };
        }
    }

    pub(super) fn clear(&mut self) {
        while !self.0.is_empty() {
            self.drop_last();
        }
    }
}

/// Is the library there?
#[must_use]
pub fn available() -> bool {
    // SAFETY: loads a library by its well-known name; its initialisers are the vendor's.
    unsafe { sys::is_culib_present() }
}

impl Gpu {
    /// Plans a transform ahead, so that the memory it needs is taken now.
    ///
    /// # Errors
    /// As [`Gpu::transform`].
    pub fn plan(&self, layout: Layout) -> Result<(), DeviceError> {
        self.plans().get(layout).map(drop)
    }

    /// Forgets all plans, and with them the memory they hold.
    pub fn forget_plans(&self) {
        self.plans().clear();
    }

    /// Transforms from device address `from` to `to`, which may be the same when the stride is 1.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or cuFFT refuses.
    pub fn transform(
        &self,
        stream: &Stream,
        layout: Layout,
        from: u64,
        to: u64,
        direction: Direction,
    ) -> Result<(), DeviceError> {
        let mut plans = self.plans();
        let plan = plans.get(layout)?;
        let sign = if direction == Direction::Forward { -1 } else { 1 };
        // SAFETY: the plan is alive and locked; stream and memory are the caller's.
        unsafe {
            result::set_stream(plan, stream.raw().cast()).map_err(DeviceError::at_fft("cufftSetStream"))?;
            result::exec_c2c(plan, from as *mut _, to as *mut _, sign).map_err(DeviceError::at_fft("cufftExecC2C"))
        }
    }
}
