# The simulated NVML: `make -f nvml.mk`, or included by the Makefile.
BUILD ?= build
NVML_SOURCES := libnvidia_ml.c nvml_node.c nvml_figures.c
NVML_HEADERS := state.h liveness.h nvml_state.h nvml_node.h nvml_api.h

.PHONY: nvml
nvml: $(BUILD)/libnvidia-ml.so.1

$(BUILD)/libnvidia-ml.so.1: $(NVML_SOURCES) $(NVML_HEADERS)
	@mkdir -p $(BUILD)
	$(CC) -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden \
	    -Wl,-soname,libnvidia-ml.so.1 -Wl,-z,defs -o $@.$$$$ $(NVML_SOURCES) && mv $@.$$$$ $@
