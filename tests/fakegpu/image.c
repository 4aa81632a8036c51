/* Reads cubins (ELF), PTX and fat binaries as far as names go. */
#include "image.h"
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FATBIN_MAGIC 0xba55ed50u
#define FATBIN_WRAPPER 0x466243b1u

struct wrapper {
    u32 magic;
    u32 version;
    const void *data;
    const void *more;
};

struct fatbin {
    u32 magic;
    u16 version;
    u16 header_bytes;
    u64 body_bytes;
};

static struct fg_symbol *add(struct fg_image *image, const char *name, size_t length, bool kernel) {
    image->symbols = realloc(image->symbols, (image->count + 1) * sizeof *image->symbols);
    if (!image->symbols)
        abort();
    struct fg_symbol *symbol = &image->symbols[image->count++];
    *symbol = (struct fg_symbol){.name = strndup(name, length), .kernel = kernel};
    return symbol;
}

static size_t elf_size(const Elf64_Ehdr *header) {
    size_t end = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    const Elf64_Shdr *sections = (const void *)((const char *)header + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
            end = sections[i].sh_offset + sections[i].sh_size;
    size_t programs = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
    return programs > end ? programs : end;
}

/* In a cubin kernels are the functions with the entry bit in st_other; the others are called. */
static void read_elf(struct fg_image *image) {
    enum { ENTRY = 0x10 };
    const Elf64_Ehdr *header = (const void *)image->copy;
    const Elf64_Shdr *sections = (const void *)(image->copy + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        const char *names = image->copy + sections[sections[i].sh_link].sh_offset;
        const Elf64_Sym *symbols = (const void *)(image->copy + sections[i].sh_offset);
        for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; s++) {
            const Elf64_Sym *symbol = &symbols[s];
            const char *name = names + symbol->st_name;
            int type = ELF64_ST_TYPE(symbol->st_info);
            bool defined = symbol->st_shndx && symbol->st_shndx < header->e_shnum;
            if (type == STT_FUNC && symbol->st_other & ENTRY && defined) {
                add(image, name, strlen(name), true);
            } else if (type == STT_OBJECT && defined && symbol->st_size) {
                const Elf64_Shdr *section = &sections[symbol->st_shndx];
                struct fg_symbol *global = add(image, name, strlen(name), false);
                global->bytes = symbol->st_size;
                if (section->sh_type != SHT_NOBITS)
                    global->content = image->copy + section->sh_offset + symbol->st_value;
            }
        }
    }
}

static bool word_character(char character) {
    return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z') ||
           (character >= '0' && character <= '9') || character == '_' || character == '$';
}

static const char *skip_spaces(const char *text) {
    while (*text == ' ' || *text == '\t' || *text == '\n' || *text == '\r')
        text++;
    return text;
}

/* Entries, and global variables with the size of their type times that of their array. */
static void read_ptx(struct fg_image *image) {
    const char *at = image->copy;
    while ((at = strstr(at, ".entry"))) {
        const char *name = skip_spaces(at + 6);
        size_t length = 0;
        while (word_character(name[length]))
            length++;
        if (length)
            add(image, name, length, true);
        at = name;
    }
    at = image->copy;
    while ((at = strstr(at, ".global "))) {
        u64 bytes = 0, elements = 1;
        const char *before = at;
        while (before > image->copy && before[-1] != '\n')
            before--;
        at += 8;
        if (strncmp(skip_spaces(before), ".", 1) != 0)
            continue; /* an instruction that names the space */
        for (at = skip_spaces(at); *at == '.'; at = skip_spaces(at)) {
            size_t length = 1;
            while (word_character(at[length]))
                length++;
            if (strchr("bsuf", at[1]) && at[2] >= '0' && at[2] <= '9')
                bytes = strtoul(at + 2, NULL, 10) / 8;
            else if (strncmp(at, ".align", 6) == 0)
                for (at = skip_spaces(at + length), length = 0; word_character(at[length]);)
                    length++;
            at += length;
        }
        size_t length = 0;
        while (word_character(at[length]))
            length++;
        const char *name = at;
        for (at += length; *at == '['; at = strchr(at, ']') ? strchr(at, ']') + 1 : "")
            elements *= strtoul(at + 1, NULL, 10);
        if (length && bytes && elements)
            add(image, name, length, false)->bytes = bytes * elements;
        else if (!*at)
            break;
    }
}

bool fg_read_image(const void *data, struct fg_image *image) {
    u32 magic;
    memcpy(&magic, data, sizeof magic);
    *image = (struct fg_image){0};
    if (magic == FATBIN_WRAPPER) {
        data = ((const struct wrapper *)data)->data;
        memcpy(&magic, data, sizeof magic);
    }
    if (magic == FATBIN_MAGIC) {
        const struct fatbin *header = data;
        image->size = header->header_bytes + header->body_bytes;
        image->opaque = true;
    } else if (memcmp(data, ELFMAG, SELFMAG) == 0 && ((const u8 *)data)[EI_CLASS] == ELFCLASS64) {
        image->size = elf_size(data);
    } else if (strstr(data, ".version") || strstr(data, ".entry")) {
        image->size = strlen(data) + 1;
    } else {
        return false;
    }
    image->copy = malloc(image->size);
    if (!image->copy)
        return false;
    memcpy(image->copy, data, image->size);
    if (memcmp(image->copy, ELFMAG, SELFMAG) == 0)
        read_elf(image);
    else if (!image->opaque)
        read_ptx(image);
    return true;
}

void fg_free_image(struct fg_image *image) {
    for (size_t i = 0; i < image->count; i++)
        free(image->symbols[i].name);
    free(image->symbols);
    free(image->copy);
}

/* A cubin says of each kernel where its parameters lie: in .nv.info.KERNEL, as records of a format,
 * an attribute and a size; attribute 0x17 is one parameter: its index, place and size. */
bool fg_image_parameter(const struct fg_image *image, const char *kernel, size_t index,
                        size_t *offset, size_t *size) {
    enum { SIZED = 4, PARAMETER = 0x17 };
    if (image->opaque || memcmp(image->copy, ELFMAG, SELFMAG) != 0)
        return false;
    const Elf64_Ehdr *header = (const void *)image->copy;
    const Elf64_Shdr *sections = (const void *)(image->copy + header->e_shoff);
    const char *names = image->copy + sections[header->e_shstrndx].sh_offset;
    for (int i = 0; i < header->e_shnum; i++) {
        const char *name = names + sections[i].sh_name;
        if (strncmp(name, ".nv.info.", 9) != 0 || strcmp(name + 9, kernel) != 0)
            continue;
        const u8 *record = (const u8 *)image->copy + sections[i].sh_offset;
        const u8 *end = record + sections[i].sh_size;
        while (record + 4 <= end) {
            u16 bytes;
            memcpy(&bytes, record + 2, sizeof bytes);
            if (record[0] != SIZED) {
                record += 4;
                continue;
            }
            if (record[1] == PARAMETER && bytes >= 12) {
                u16 ordinal, place;
                u32 flags;
                memcpy(&ordinal, record + 8, sizeof ordinal);
                memcpy(&place, record + 10, sizeof place);
                memcpy(&flags, record + 12, sizeof flags);
                if (ordinal == index) {
                    *offset = place;
                    if (size)
                        *size = flags >> 18;
                    return true;
                }
            }
            record += 4 + bytes;
        }
    }
    return false;
}

bool fg_read_file(const char *path, char **content, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    *content = NULL;
    *size = 0;
    for (size_t got = 1; got;) {
        *content = realloc(*content, *size + 65536 + 1);
        if (!*content)
            abort();
        got = fread(*content + *size, 1, 65536, file);
        *size += got;
    }
    (*content)[*size] = 0;
    fclose(file);
    return true;
}

/* The compiler's and linker's logs stay empty: options 3 to 6 are the buffers and their sizes. */
void fg_empty_logs(unsigned count, const int *options, void **values) {
    for (unsigned i = 0; options && values && i < count; i++) {
        if ((options[i] == 3 || options[i] == 5) && values[i])
            *(char *)values[i] = 0;
        else if (options[i] == 4 || options[i] == 6)
            values[i] = NULL;
    }
}
