"""From a question in English to SQL: the worked application, embedded and offline.

A generator makes small schemas, questions about them and the queries that answer the questions. A small model learns
to write the query, and every query that it writes runs in a real SQLite database.

    draws       random choices
    schemas     tables, columns, and rows to fill them with
    questions   questions with their queries, the text that the model reads, and what is held out
    database    runs a query that nobody has checked, within limits
    scores      exact match and execution accuracy
    pairs       preference pairs whose better answer executes correctly
    earnings    what a query earns by its execution, the reward
    writing     how a model reads examples, and writes queries
    stages      the stages of the training, and what is measured after each
"""
