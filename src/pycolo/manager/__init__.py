"""One protected VM on one host: assembles QEMU, agent, peer session, arbiter and the core's decisions."""
