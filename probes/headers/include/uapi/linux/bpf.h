/* gpubpf: bcc carries a copy of bpf.h of its own and includes it first. */
