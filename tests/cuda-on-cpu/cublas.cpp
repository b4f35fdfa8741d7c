// libcublas.so: the calls that products take, summed in f32 one after the other, over memory that the driver beside it knows.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {
constexpr int SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;
constexpr int F32 = 0, F16 = 2, BF16 = 14, TRANSPOSED = 1, COMPUTE_F32 = 68, COMPUTE_TF32 = 77;

size_t size_of(int type) { return type == F32 ? 4 : 2; }

float read(const void *of, int type, size_t at) {
    float value;
    uint32_t bits;
    if (type == F32) {
        memcpy(&value, static_cast<const char *>(of) + 4 * at, 4);
    } else if (type == BF16) {
        uint16_t half;
        memcpy(&half, static_cast<const char *>(of) + 2 * at, 2);
        bits = uint32_t{half} << 16;
        memcpy(&value, &bits, 4);
    } else {
        _Float16 half;
        memcpy(&half, static_cast<const char *>(of) + 2 * at, 2);
        value = static_cast<float>(half);
    }
    return value;
}

// To the nearest, ties to even.
float rounded_off(float value, int bits_off) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t one = 1u << bits_off;
    if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + one / 2 - 1 + ((bits >> bits_off) & 1)) & ~(one - 1);
    memcpy(&value, &bits, 4);
    return value;
}

void write(void *of, int type, size_t at, float value) {
    if (type == F32) {
        memcpy(static_cast<char *>(of) + 4 * at, &value, 4);
    } else if (type == BF16) {
        value = rounded_off(value, 16);
        memcpy(static_cast<char *>(of) + 2 * at, reinterpret_cast<char *>(&value) + 2, 2);
    } else {
        _Float16 half = static_cast<_Float16>(value);
        memcpy(static_cast<char *>(of) + 2 * at, &half, 2);
    }
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))

extern "C" int cocInside(unsigned long long, size_t, const char *);

API int cublasCreate_v2(void **handle) { *handle = new int(0); return SUCCESS; }
API int cublasDestroy_v2(void *handle) { delete static_cast<int *>(handle); return SUCCESS; }
API int cublasSetStream_v2(void *, void *) { return SUCCESS; }
API int cublasSetMathMode(void *, int) { return SUCCESS; }

API int cublasGemmStridedBatchedEx(void *, int of_a, int of_b, int rows, int columns, int length, const void *alpha, const void *a, int a_type, int lda,
                                   long long next_a, const void *b, int b_type, int ldb, long long next_b, const void *beta, void *c,
                                   int c_type, int ldc, long long next_c, int batch, int compute, int) {
    if (compute != COMPUTE_F32 && compute != COMPUTE_TF32) return NOT_SUPPORTED;
    // what the library's manual lists for sums in f32: two factors of one type, and a result of theirs or of f32
    bool known = (a_type == F32 || a_type == F16 || a_type == BF16) && a_type == b_type && (c_type == a_type || c_type == F32);
    if (!known || (compute == COMPUTE_TF32 && a_type != F32)) return NOT_SUPPORTED;
    int rows_a = of_a == TRANSPOSED ? length : rows, columns_a = of_a == TRANSPOSED ? rows : length;
    int rows_b = of_b == TRANSPOSED ? columns : length, columns_b = of_b == TRANSPOSED ? length : columns;
    if (rows < 0 || columns < 0 || length < 0 || batch < 0 || lda < rows_a || ldb < rows_b || ldc < rows) return INVALID_VALUE;
    if (rows == 0 || columns == 0 || batch == 0) return SUCCESS;
    size_t m = static_cast<size_t>(rows), n = static_cast<size_t>(columns), k = static_cast<size_t>(length);
    auto outside = [&](const void *of, int type, long long leading, int down, int along, long long next, const char *what) {
        size_t values = static_cast<size_t>((batch - 1) * next + (along - 1) * leading + down);
        return cocInside(reinterpret_cast<unsigned long long>(of), values * size_of(type), what) != 0;
    };
    if (outside(a, a_type, lda, rows_a, columns_a, next_a, "cuBLAS reads") || outside(b, b_type, ldb, rows_b, columns_b, next_b, "cuBLAS reads")
        || outside(c, c_type, ldc, rows, columns, next_c, "cuBLAS writes"))
        return EXECUTION_FAILED;
    float scale, keep;
    memcpy(&scale, alpha, 4);
    memcpy(&keep, beta, 4);
    auto values = [&](const void *of, int type, bool transposed, size_t down, size_t along, int leading, size_t first) {
        std::vector<float> out(down * along);
        size_t step = static_cast<size_t>(leading);
        for (size_t row = 0; row < down; row++)
            for (size_t column = 0; column < along; column++) {
                float value = read(of, type, first + (transposed ? row * step + column : column * step + row));
                // the matrix units' 10 bits
                out[row * along + column] = compute == COMPUTE_TF32 ? rounded_off(value, 13) : value;
            }
        return out;
    };
    for (long long at = 0; at < batch; at++) {
        auto left = values(a, a_type, of_a == TRANSPOSED, m, k, lda, static_cast<size_t>(at * next_a));
        auto right = values(b, b_type, of_b == TRANSPOSED, k, n, ldb, static_cast<size_t>(at * next_b));
        std::vector<float> sums(m * n);
        for (size_t i = 0; i < m; i++)
            for (size_t l = 0; l < k; l++)
                for (size_t j = 0; j < n; j++) sums[i * n + j] += left[i * k + l] * right[l * n + j];
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                size_t to = static_cast<size_t>(at * next_c) + j * static_cast<size_t>(ldc) + i;
                // what is not kept is not read
                float before = keep == 0 ? 0 : keep * read(c, c_type, to);
                write(c, c_type, to, scale * sums[i * n + j] + before);
            }
    }
    return SUCCESS;
}
