/* gpubpf: the user-visible registers as a probe sees them. The order is the kernel's ABI
 * (arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h). */
#ifndef GPUBPF_STUB_PTRACE_H
#define GPUBPF_STUB_PTRACE_H

#include <linux/types.h>

#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__) || defined(bpf_target_arm64)
struct pt_regs {
    u64 regs[31];
    u64 sp, pc, pstate;
};
#else
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
    unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#endif

#endif
