/* Row-major matrices as llama.c reads float ones: panels of 16 outputs, in each the outputs of one input side by side. */
#include <stddef.h>
#include <stdint.h>

enum { PANEL = 16 };

/* Rows [rows][width] become the outputs from `first` on; every `stride`th panel of [panels][depth][16] is theirs. */
void hustings_lay_out(const float *rows, int32_t count, int32_t width, int32_t first, int32_t stride, int32_t depth, float *out) {
  for (int r = 0; r < count; r++) {
    int output = first + r;
    float *lane = out + (size_t)(output / PANEL) * stride * depth * PANEL + output % PANEL;
    for (int k = 0; k < width; k++) lane[(size_t)k * PANEL] = rows[(size_t)r * width + k];
  }
}
