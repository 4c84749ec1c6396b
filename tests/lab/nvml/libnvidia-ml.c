// SPDX-License-Identifier: Apache-2.0
// A stand-in for NVIDIA's library: two GPUs of 24,000 MiB that pods may have, named after the node.
// What is not here a real driver may lack, too.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, GPUS = 2 };
enum { MODE_DEFAULT = 0 };

static const unsigned long long MIB = 1 << 20;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_v2;

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == SUCCESS ? "Success" : "the stand-in refuses"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int room) {
    snprintf(text, room, "580.00.00");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = GPUS; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index >= GPUS) return INVALID_ARGUMENT;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned int room) {
    const char *node = getenv("NODE_NAME");
    snprintf(text, room, "GPU-%s-%zu", node ? node : "none", (size_t)device - 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int room) {
    (void)device;
    snprintf(text, room, "NVIDIA LAB");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    (void)device;
    memory->reserved = 500 * MIB;
    memory->total = 24000 * MIB + memory->reserved;
    memory->used = 0;
    memory->free = memory->total - memory->reserved;
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(void *device, int *mode) {
    (void)device;
    *mode = MODE_DEFAULT;
    return SUCCESS;
}
