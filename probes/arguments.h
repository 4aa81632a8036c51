/* Arguments and results of a probed function, per calling convention.
 *
 * A probe sits at the function's first instruction, or at the stub's je: at both places the
 * argument registers, the stack pointer and the return address are as the caller left them.
 * ARG(n) counts from 0. Arguments past the registers are read from the caller's stack. */
#ifndef GPUBPF_ARGUMENTS_H
#define GPUBPF_ARGUMENTS_H

#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__) || defined(bpf_target_arm64)
/* AAPCS64: x0-x7, then the stack; the return address is in x30. */
#define ARG_REGISTERS 8
#define STACK_SLOTS_BEFORE_ARGS 0
#define REG_0(ctx) ((ctx)->regs[0])
#define REG_1(ctx) ((ctx)->regs[1])
#define REG_2(ctx) ((ctx)->regs[2])
#define REG_3(ctx) ((ctx)->regs[3])
#define REG_4(ctx) ((ctx)->regs[4])
#define REG_5(ctx) ((ctx)->regs[5])
#define REG_6(ctx) ((ctx)->regs[6])
#define REG_7(ctx) ((ctx)->regs[7])
#define STACK(ctx) ((ctx)->sp)
#define RESULT(ctx) ((ctx)->regs[0])
#else
/* System V AMD64: rdi, rsi, rdx, rcx, r8, r9, then the stack above the return address. */
#define ARG_REGISTERS 6
#define STACK_SLOTS_BEFORE_ARGS 1
#define REG_0(ctx) ((ctx)->di)
#define REG_1(ctx) ((ctx)->si)
#define REG_2(ctx) ((ctx)->dx)
#define REG_3(ctx) ((ctx)->cx)
#define REG_4(ctx) ((ctx)->r8)
#define REG_5(ctx) ((ctx)->r9)
#define STACK(ctx) ((ctx)->sp)
#define RESULT(ctx) ((ctx)->ax)
#endif

/* The kernel's helpers under names of our own. bcc knows bpf_probe_read_user by its name and, for
 * every call of it, reads all of /proc/kallsyms to see if the kernel has it: more than half
 * of the time that the loader took. It is there since Linux 5.5. (Numbers:
 * include/uapi/linux/bpf.h.) */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;

#define ARG(ctx, n) ((u64)REG_##n(ctx))

static __always_inline u64 stack_argument(struct pt_regs *ctx, u32 n) {
    u64 value = 0;
    u64 slot = STACK(ctx) + 8 * (n - ARG_REGISTERS + STACK_SLOTS_BEFORE_ARGS);
    read_user(&value, sizeof(value), (void *)slot);
    return value;
}

/* An argument whose position is known at run time only. By way of an array: of a switch, clang
 * makes one load from a computed place in the context, which the verifier refuses. */
static __always_inline u64 argument(struct pt_regs *ctx, u32 n) {
    u64 first[8] = {REG_0(ctx), REG_1(ctx), REG_2(ctx), REG_3(ctx), REG_4(ctx), REG_5(ctx)};
#if ARG_REGISTERS > 6
    first[6] = REG_6(ctx);
    first[7] = REG_7(ctx);
#endif
    return n < ARG_REGISTERS ? first[n] : stack_argument(ctx, n);
}

#endif
