/* gpubpf: the instruction encoding's classic part, which bcc's copy of bpf.h builds upon. */
#ifndef GPUBPF_STUB_BPF_COMMON_H
#define GPUBPF_STUB_BPF_COMMON_H
#endif
