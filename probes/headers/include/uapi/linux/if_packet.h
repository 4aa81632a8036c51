/* gpubpf: bcc includes this; our programs need nothing of it. */
