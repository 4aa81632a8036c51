/* The exports of libcuda.so.1, with the machine code that NVIDIA's library has on x86-64: 32 bytes,
 * 32-byte aligned, a compare with a magic word, a branch for a library that is shut down, a jump
 * through a table. On arm64 it is a plain jump through the table. */

    .data
    .p2align 2
fg_shut_down:
    .long 0

    .text

#if defined(__x86_64__)

/* What the real stubs do with 8 and 16 bit arguments: widen them, in the register they come in. */
.macro widen_none
.endm
.macro widen8_2
    movzbl %sil, %esi
.endm
.macro widen16_2
    movzwl %si, %esi
.endm
.macro widen8_3
    movzbl %dl, %edx
.endm
.macro widen16_3
    movzwl %dx, %edx
.endm

.macro STUB name place widen
    .p2align 5
    .globl \name
    .type \name, @function
\name:
    cmpl $0x321cba00, fg_shut_down(%rip)
    je 1f
    \widen
    jmp *(fg_table + 8 * \place)(%rip)
    .p2align 4,,10
    .p2align 3
1:  mov $4, %eax
    ret
    .size \name, . - \name
.endm

#elif defined(__aarch64__)

.macro STUB name place widen
    .p2align 5
    .globl \name
    .type \name, %function
\name:
    adrp x16, fg_table + 8 * \place
    ldr x16, [x16, :lo12:(fg_table + 8 * \place)]
    br x16
    .size \name, . - \name
.endm

#else
#error "stubs are written for x86-64 and arm64 only"
#endif

#include "stubs.inc"

    .section .note.GNU-stack,"",%progbits
