/* gpubpf: stands in for the kernel's own; bcc asks for this one option by name. */
#define CONFIG_BPF_SYSCALL 1
