"""The code that the notebooks share, one noun per file, in the order in which data flows.

Nothing here imports from a file further down this list.

    environment      what a Python lacks of what pyproject.toml asks for
    paths            where things are
    profiles         the one dial: smoke, laptop, llava-7b, llava-13b
    provenance       where a result comes from: commit, packages, machine
    runs             results on disk, written once, whole or not at all
    claims           what a notebook claims, and whether it held
    pictures         image files, opened with care
    dataset_check    what can be wrong with a dataset folder
    dataset          SafeEraser's format: forget, retain and prompt-decouple sets
    dataset_export   the same sets through `datasets`, with a card
    iconworld_words  the small picture world's things, words and wordings
    iconworld        a small picture world that writes this format
    model            LLaVA and its processor, loaded or built, with LoRA
    batching         one image with all its questions in one row
    losses           terms as tensors -> one number; a method is a row of weights
    pretrain         from nothing to a small LLaVA
    unlearn          the training loop
    generate         answers, in batches
    judges           answer -> label
    metrics          labels -> ASR, RR, ROUGE-L, SARR, specificity
    evaluate         a model -> every answer of the evaluation, judged
    statistics       rates -> intervals and paired differences
    progress         one line per step, with the time that is left
    agenda           what is still to be made, and who makes it
    workers          pieces of work side by side on this machine's GPUs or cores
    ray_nodes        what Ray's tasks do on their machines, and how results travel
    ray_engine       pieces of work side by side on a Ray cluster (optional)
    engines          which of the two, and what it has to work with
    experiments      every run that the chapters need, as steps in the run store
    tables           tidy frame -> CSV, Markdown, LaTeX
    plot_parts       what the figures share: colours, bars, axes
    plots            tidy frame -> figure
    gallery          picture, question, answer before, answer after
    chapters         the notebooks: found, fingerprinted, executed
    readme           README.md's generated blocks: figures, costs, tables
    publish          a run's notebooks and figures, copied to where readers find them
    pipeline         all of it in one command
"""
