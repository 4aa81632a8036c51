# The simulated NVML: `make -f nvml.mk`, or included by the Makefile. `newer`: as of driver 570.
BUILD ?= build
NVML_SOURCES := libnvidia_ml.c $(sort $(wildcard nvml_*.c))
NVML_HEADERS := nvml.mk state.h liveness.h $(sort $(wildcard nvml_*.h))

.PHONY: nvml newer
nvml: $(BUILD)/libnvidia-ml.so.1
newer: $(BUILD)/newer/libnvidia-ml.so.1

$(BUILD)/newer/libnvidia-ml.so.1: NVML_FLAGS := -DFGN_NEWER

$(BUILD)/libnvidia-ml.so.1 $(BUILD)/newer/libnvidia-ml.so.1: $(NVML_SOURCES) $(NVML_HEADERS)
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -pthread \
	    $(NVML_FLAGS) -Wl,-soname,libnvidia-ml.so.1 -Wl,-z,defs -o $@.$$$$ $(NVML_SOURCES) \
	    && mv $@.$$$$ $@
