//! The pause program: process 1 of every pod sandbox.
//!
//! It holds the pod's namespaces open, reaps what is re-parented to it when the
//! pod's containers share its pid namespace, and ends on SIGTERM or SIGINT. It is
//! compiled by build.rs into a static binary without libc, start files or
//! allocator, and put in a one-layer image by `image::pause`.
//!
//! All three signals are blocked before anything else and then taken one by one
//! with `rt_sigtimedwait`: a blocked signal is queued even for process 1 of a pid
//! namespace, which ignores unblocked signals that it has no handler for.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// Size in bytes of the kernel's signal set.
const SIGSET_BYTES: usize = 8;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const EXIT: usize = 60;
}

#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const WAIT4: usize = 260;
    pub(crate) const EXIT: usize = 93;
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("the pause program has no system call numbers for this architecture");

// The kernel enters with an aligned stack and no return address.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "call pause_main", options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "bl pause_main");
#[cfg(target_arch = "riscv64")]
global_asm!(".globl _start", "_start:", "li fp, 0", "call pause_main");

/// One raw system call with up to four arguments.
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the callers below pass valid pointers or null, and no call that this
    // program makes changes memory behind the compiler's back but the set it is given.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, options(nostack));
        #[cfg(target_arch = "riscv64")]
        asm!("ecall", in("a7") number, inlateout("a0") a as isize => result,
            in("a1") b, in("a2") c, in("a3") d, options(nostack));
    }
    result
}

#[unsafe(no_mangle)]
extern "C" fn pause_main() -> ! {
    let set: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
    let set = &raw const set as usize;
    syscall(number::RT_SIGPROCMASK, SIG_BLOCK, set, 0, SIGSET_BYTES);
    loop {
        match syscall(number::RT_SIGTIMEDWAIT, set, 0, 0, SIGSET_BYTES) as usize {
            SIGCHLD => while syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {},
            SIGINT | SIGTERM => break,
            _ => {} // interrupted by a signal that is not ours
        }
    }
    loop {
        syscall(number::EXIT, 0, 0, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        syscall(number::EXIT, 1, 0, 0, 0);
    }
}
