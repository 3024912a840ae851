def write_report(config): return ''
def text_table(rows): return str(rows)
